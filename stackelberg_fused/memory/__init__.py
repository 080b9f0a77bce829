"""The memory of tensors: arenas, shards, overlaps."""
