"""The lane through litellm's own calls."""
