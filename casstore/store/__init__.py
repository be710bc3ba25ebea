"""The store itself: open, add, read, refs, publish.

Everything outside this package goes through `store.py`; each other module here does one step of its work.
"""
