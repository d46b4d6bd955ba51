"""ModelOpt for PyTorch."""
