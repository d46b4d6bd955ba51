"""A model of the server, for tests of its clients that must see every order of events."""
