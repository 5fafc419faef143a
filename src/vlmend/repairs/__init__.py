"""Repairs: fitted once, saved as an artifact, applied to a Vlm as a context manager."""
