"""A model hub on loopback, for the real `huggingface_hub` client: what it holds, how it answers, how it fails.

`Hub` is a plain LFS hub (no Xet): it implements the endpoints that the client uses to publish and to fetch, and can be
told to fail. Its LFS objects are served from another host name than its API, as on the public hub, so that a token
that leaves the API is noticed.
"""

from tests.hub.faults import Fault
from tests.hub.server import Hub
from tests.hub.store import Account, Repository

__all__ = ["Account", "Fault", "Hub", "Repository"]
