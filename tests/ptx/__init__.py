"""An interpreter of PTX: it runs the kernels that nvcc and Triton emit, without a GPU, and checks what they do.

From a text to a launch: `parser` (with `statements`, into what `text` holds), `kernel` (instructions become operations
on arrays of lanes, by `arithmetic`, `bits`, `comparisons`, `conversions`, `approximate`, `warp` and `accesses`), `gang`
(control flow), `launch` (blocks, their order, barriers). Checks: `memory` (bounds, alignment, what nothing has
written), `order` and `races` (happens-before), `coalescing`. Instructions are tested one by one against `definitions`.

Section numbers are those of NVIDIA's PTX ISA, version 9.0.
"""
