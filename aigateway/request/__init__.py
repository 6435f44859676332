"""One request: validated, then answered by the cache, an identical one in flight, or providers."""
