"""Reads models: what they consist of, their files, and what other stores have of what is lost."""
