"""The models and texts that the package carries, so that nothing must be downloaded from a hub.

`chat` writes the chat model, `tool` trains the screenshot classifier on `utterances`, and `texts` holds what quantizing
and validating read. Where each text came from is told in `data/README.md`.
May import `stages` and below.
"""
