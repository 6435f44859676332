"""What processes share: limits, circuits and answers; and what outlives a restart."""
