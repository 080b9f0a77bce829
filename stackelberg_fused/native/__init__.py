"""Python's side of csrc: table layouts in memory, and readers of tensors and containers."""
