"""Running a pass: one thread at a time for each key, its output recorded, or the one recorded first returned."""
