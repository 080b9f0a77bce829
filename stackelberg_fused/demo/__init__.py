"""The training demo: one learning rate against two, from the same seed, on data that needs no download."""
