"""Where tensors lie: arenas, shards, overlaps."""
