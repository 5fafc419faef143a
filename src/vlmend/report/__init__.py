"""Records -> one HTML file that opens offline; imports no torch, transformers, models or hooks."""
