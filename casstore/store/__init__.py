"""The models of a store: add, check out, read.

Everything outside this package goes through `model_store.py`; each other module here does one step of its work.
"""
