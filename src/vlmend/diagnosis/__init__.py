"""Diagnosis: what is wrong with a VLM, and where."""
