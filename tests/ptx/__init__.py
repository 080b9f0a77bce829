"""An interpreter of PTX: it runs the kernels that nvcc and Triton emit, without a GPU, and checks what they do.

From a text to a launch: `parser`, `kernel` (instructions become operations on arrays of lanes, by `arithmetic`,
`bits`, `conversions`, `approximate`, `warp` and `accesses`), `gang` (control flow), `launch` (blocks, their order,
barriers). Checks: `memory` (bounds, alignment, what nothing has written), `order` and `races` (happens-before),
`coalescing`.

Section numbers are those of NVIDIA's PTX ISA, version 9.0.
"""
