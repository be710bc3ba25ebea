"""Writing a cached model where its user wants it: one file, a folder, or a package of components."""
