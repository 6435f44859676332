"""What the gateway tells: log events and counters. Never a prompt, an answer or a key."""
