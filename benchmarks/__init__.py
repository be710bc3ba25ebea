"""Measures casstore side by side with the tools that people would use instead: see README.md."""
