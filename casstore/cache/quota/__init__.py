"""Keeps a cache's store below a size: an estimate of its size, and a collection in a process of its own."""
