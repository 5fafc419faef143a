"""Judges: one file per judge, from a sample and a response to a verdict."""
