"""Clients that do not behave, and what another one notices of them: `python -m tests.attack`.

Each client is one module in `clients/` with an `ATTACK`; a new one needs nothing else.
"""
