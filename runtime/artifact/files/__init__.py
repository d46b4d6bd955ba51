"""The files of an artifact: which paths it may have, what lies under its folder, how one is opened, what is loaded.

Nothing here trusts the disk: a name may be anything, and what it names may be a pipe, a device or a link.
May import `artifact` and `host`.
"""
