"""Runs of a pipeline: as people and Olive read them, why one was a miss, and ending those that nobody closed."""
