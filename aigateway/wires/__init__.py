"""The one door to the vendors, and the only rooms that may import litellm."""
