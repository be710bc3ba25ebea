"""The index: immutable segments that say in which pack each object lies, and the look-up in them."""
