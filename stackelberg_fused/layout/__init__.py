"""The tables that kernels read: records, tiles, rows, and what launches leave behind."""
