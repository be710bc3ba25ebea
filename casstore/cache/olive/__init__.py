"""Olive's own file shapes: model JSON, saved models, resources, its cache folder."""
