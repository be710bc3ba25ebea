"""Writes objects: packs of encoded frames, and the publish that makes records depend on them (design §8)."""
