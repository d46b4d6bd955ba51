"""Models for tests: tiny random ones, chat templates of known families, and quantized weights in float again."""
