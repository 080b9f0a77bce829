"""A step: what is read, checked and launched, and where parameters and their state lie."""
