"""The cache of answers: its keys and its store."""
