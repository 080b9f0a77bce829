"""The classes users construct, on top of an engine: torch.optim on the outside."""
