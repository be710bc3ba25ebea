"""Refs: names, the immutable records that give them values, and a catalogue of them on this machine."""
