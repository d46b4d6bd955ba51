"""A stand-in for ModelOpt's part for PyTorch."""
