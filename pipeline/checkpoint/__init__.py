"""What a checkpoint is, as its files say: its config, its shape, and the format of weights that came quantized.

Nothing is fetched or looked for here; `source` does that. May import `lanes` and below.
"""
