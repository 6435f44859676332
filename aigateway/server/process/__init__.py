"""Processes of the service: start, drain, reload, several workers."""
