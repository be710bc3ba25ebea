"""The models of a store: add, check out, read.

Everything outside this package goes through `model_store.py`, and what that inherits from `ref_store.py`; each other
module here does one step of their work.
"""
