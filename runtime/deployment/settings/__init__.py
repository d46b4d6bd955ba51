"""The server's environment variables: what each means, how they are read, and how they are shown.

May import what `deployment` may.
"""

from runtime.deployment.settings.declaring import SettingsError, canonical_origin
from runtime.deployment.settings.environment import Environment, is_loopback, load, look
from runtime.deployment.settings.server import RuntimeSettings

__all__ = ["Environment", "RuntimeSettings", "SettingsError", "canonical_origin", "is_loopback", "load", "look"]
