"""Breaker, guards, limits and retries: plain synchronous state, no I/O, no tasks."""
