"""The arithmetic itself, in plain PyTorch: what every kernel has to reproduce."""
