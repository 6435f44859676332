"""The choice of providers, and the way of one request across them."""
