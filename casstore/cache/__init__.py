"""The pipeline's view of a store: models, runs and evaluations that are cached, reused and shared.

README.md here says what each part does, and how it differs from Olive's cache.
"""
