"""What predicts the tensors that are added: which tensors of the store, by which operation, and the deltas that follow.

Planning is pure and works on sketches, a few elements of each tensor. Base chunks are read only for chunks that the plan
says are worth it.
"""
