"""An interpreter of PTX: it runs the kernels that nvcc and Triton emit, without a GPU, and checks what they do.

From a text to a launch: `parser` (with `statements`, into what `text` holds), `kernel` (instructions become operations
on arrays of lanes, by `arithmetic`, `bits`, `comparisons`, `conversions`, `approximate`, `warp` and `accesses`), `gang`
(control flow), `launch` (blocks, their order, barriers). Checks: `memory` (bounds, alignment, what nothing has
written), `order` and `races` (happens-before), `coalescing`. Instructions are tested one by one against `definitions`.
`shared_runs` are the runs in which threads share data. `mutations` changes the kernels (`mutants`), tries the changes
in these runs (`trials`), so that the checks are checked, and says why some do no harm (`harmless`, by `probes`).
`tiny` has kernels for tests of the interpreter itself.

Section numbers are those of NVIDIA's PTX ISA, version 9.0.
"""
