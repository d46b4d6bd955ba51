"""Test doubles and helpers: scripted engines, tiny models, servers in processes of their own, stand-ins."""
