"""Clients that do not behave, and what another one notices of them."""
