"""The files whose tensors may be bases, of the store and of the add itself, and the bytes of their chunks."""
