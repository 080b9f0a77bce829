"""The paper's claims, measured, for and against: ``python -m stackelberg_fused experiment NAME``."""
