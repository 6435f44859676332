"""The endpoints: what arrives, what is answered, and the errors."""
