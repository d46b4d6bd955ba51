"""The network: a socket to a server is opened, and opened again when it is lost. A dialogue goes over it."""
