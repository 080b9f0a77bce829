"""Commands that look at an installation: what is here, and whether it computes what it should."""
