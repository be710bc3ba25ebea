"""The store itself: open, add, read, refs, publish.

`store.py` is the door; every other module here does one step behind it.
"""
