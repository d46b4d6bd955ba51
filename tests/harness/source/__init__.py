"""Reads our own source: its imports, its rooms, and what it opens while it plans."""
