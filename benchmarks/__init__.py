"""Throughput of one optimizer step, beside torch and other libraries.

``bench.py`` is the command, ``rows.py`` the list of rows, ``harness.py`` measures one. The modules that a separate
process needs do not import ``stackelberg_fused`` at module level: ``clean_process.py`` loads this package under
another name, so that torch can be timed in a process that never imports the library.
"""
