"""A run: its log, its process and folder, and the store that makes the logs readable."""
