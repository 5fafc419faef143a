"""The only place that registers hooks or patches a forward: reading, editing and exits."""
