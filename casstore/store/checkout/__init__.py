"""Checking out: plain files written from a model."""
