"""The status page for operators at `/`, and the feed that keeps it live."""
