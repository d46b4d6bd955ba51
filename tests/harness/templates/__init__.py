"""Chat templates that tests render: those of real models."""
