"""The dialogue with a server, without a socket: what is sent (`outbox`), what is answered, and what the server knows.

It knows no asyncio. A `Dialogue` is what the rest of the package, and who brings a socket of their own, uses.
"""

from __future__ import annotations

from yap_client.dialogue.protocol import Dialogue

__all__ = ["Dialogue"]
