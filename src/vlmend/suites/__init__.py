"""Suites: one file per data set, from its official layout to samples, with licence and citation."""
