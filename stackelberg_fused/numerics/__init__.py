"""The arithmetic in plain PyTorch; every kernel has to reproduce it."""
