"""Many requests: bounded concurrency, patience during outages, and jobs from file to file."""
