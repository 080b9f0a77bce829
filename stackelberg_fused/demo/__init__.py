"""The training demo: one rate against two, from the same seed, on data that needs no download."""
