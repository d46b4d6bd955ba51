"""The main jobs, end to end, as `make` runs them."""
