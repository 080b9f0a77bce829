"""A GPU's runtime that records: what the host enqueues on streams, in which order it may run, and what it may touch.

`runtime.py` has what the library calls; `order.py` streams and events; `memory.py` who may use which bytes when;
`posed_device.py` makes tensors in the host's memory pass for those of a GPU; `launches.py` runs the kernels.
"""
