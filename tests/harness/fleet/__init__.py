"""Several servers behind a router, each in a process of its own; what dies, drains and comes back is real."""
