"""Throughput of one optimizer step against torch and its peers.

Nothing here imports ``stackelberg_fused`` at module level: ``clean_process.py`` loads this package under
another name in a process that never imports the library, so that torch can be timed without it.
"""
