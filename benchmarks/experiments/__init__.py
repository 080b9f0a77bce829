"""``python -m stackelberg_fused experiment NAME``: the paper's claims, measured, for and against."""
