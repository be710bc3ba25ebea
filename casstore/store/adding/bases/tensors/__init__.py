"""The tensors of base files, what their names have in common, and sketches, a few elements of each."""
