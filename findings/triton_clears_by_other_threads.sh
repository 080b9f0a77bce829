#!/usr/bin/env bash
# triton 3.7.1 and 3.9.0: `x = tl.load(p)` and then `tl.store(p, 0)` may go to different threads, of different warps, with nothing that
# orders them. A warp that is ahead clears elements that another has not loaded yet.
#
# Guess before running: one program, one pointer tensor: what loads element i also stores element i, so that a load and a later
# store of the same pointers need no barrier; and where the compiler chooses otherwise it puts one in, as it does for
# shared memory. Seen: each access gets a thread layout of its own (the pass "coalesce"). The load follows a float16 load
# beside it, 8 elements of a thread; the zeros depend on nothing, and are stored 4 elements of a thread. The machine code has
# no barrier at all. The interpreter, which has no threads, cannot show it, and a GPU shows it only when warps drift apart.
#
# Who is hit: kernels that take what has been summed up and clear it in one pass (gradient accumulation, histograms, queues).
# tl.debug_barrier() between the two orders them. Ours have one (triton_kernels/low_precision.py); `make ptx-mutants` shows
# that the race is back without it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat >layouts.py <<'CODE'
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

PER_THREAD = re.compile(r"(#blocked\d*) = .*sizePerThread = \[(\d+)\]")
ACCESS = re.compile(r"(tt\.load|tt\.store) .*!tt\.ptr<f32>, (#blocked\d*)>")


@triton.jit
def take(sums, grads, out, N: tl.constexpr):
    i = tl.arange(0, N)
    total = tl.load(sums + i) + tl.load(grads + i).to(tl.float32)
    tl.store(out + i, total.to(tl.float16))
    tl.store(sums + i, tl.zeros((N,), tl.float32))


signature = {"sums": "*fp32", "grads": "*fp16", "out": "*fp16", "N": "constexpr"}
aligned = {(k,): [["tt.divisibility", 16]] for k in range(3)}
source = ASTSource(take, signature, {"N": 2048}, attrs=aligned)
code = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm
elements = {name: int(count) for name, count in PER_THREAD.findall(code["ttgir"])}
# the accesses of `sums`, in the order of the program
found = [(access, elements[layout]) for access, layout in ACCESS.findall(code["ttgir"])]
barriers = len(re.findall(r"bar\.|barrier", code["ptx"]))
print(f"triton {triton.__version__}: elements of a thread in a row: {found}; barriers: {barriers}")
if (found, barriers) != ([("tt.load", 8), ("tt.store", 4)], 0):
    raise SystemExit("CHANGED: expected a load of 8 and a store of 4, and no barrier")
CODE
for version in 3.7.1 3.9.0; do
    python3 -m venv "env-$version"
    "env-$version/bin/python" -m pip install -q --no-deps "triton==$version" numpy 2>pip.log || { cat pip.log; exit 2; }
    TRITON_CACHE_DIR="$folder/cache-$version" "env-$version/bin/python" -W ignore layouts.py
done
echo "as found: the store goes by other threads than the load"
