"""`cas://`: the files of models as an fsspec file system."""
