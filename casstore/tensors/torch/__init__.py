"""Files that torch writes: zips, legacy files and exported programs. Nothing is unpickled."""
