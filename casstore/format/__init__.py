"""Bytes ↔ values of everything a store holds. README.md is the byte-exact specification.

Nothing here does I/O, reads a clock or looks at the environment.
"""
