"""What a log may show: by structure, so that nothing depends on what a text happens to look like.

Numbers, and texts under names that say nothing of users, are shown, without keys and without what signs an address. An
object is shown field by field when it is plain data, and else by its type alone. An error is shown by its type and the
places that it came through; its text only where its class says that it quotes nobody.

May import `defaults`.
"""
