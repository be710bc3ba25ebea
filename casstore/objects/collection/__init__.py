"""Packs as a collector sees them: what they hold by their own footers, and which frames of them count."""
