"""Safety directions: what one is, the ways to estimate one, and how far to trust it."""
