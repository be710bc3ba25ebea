"""Reads objects: fetches ranges of packs, decodes their frames, and hashes what comes out."""
