"""Text fit to be spoken: what goes and what stays of written marks, decided as the text streams.

May import `text` and below.
"""
