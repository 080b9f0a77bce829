#!/usr/bin/env bash
# triton 3.7.1 and 3.9.0 (with torch 2.13.0): compile time grows with the square of the number of loads and stores that share an index,
# and nearly all of it goes into one pass that chooses layouts, not into LLVM or ptxas.
#
# Guess before running: a kernel of 256 branches compiles four times as long as one of 64, since code is four times as
# long, and most of the time is LLVM's and ptxas's, as in nvcc. Seen: the pass TritonGPUCoalesce takes about 20 times as
# long, 15.6 s of 20.3 on a Xeon (the stage that follows takes 3.9 s, in proportion: 0.4 s of 64 branches). It looks from every
# access through all operations that its index is connected with, and where branches share an index these are all other
# accesses. Ours had 26 branches with several passes each over up to six buffers: 41 s, most of it in this pass, and 0.3 s
# with the two branches that a launch needs.
#
# Who is hit: whoever unrolls (tl.static_range), or keeps the variants of an operation in one kernel, to have one launch.
# Compiling the branches that a launch has costs nothing at run time (docs/kernel_reference.md, "What is compiled when").
# Timings are noisy: the script asks for more than twice of what is proportional, and for most of the time in that pass.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat >branches.py <<'CODE'
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def kernel(x, y, z, kinds, N: tl.constexpr, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    kind = tl.load(kinds + tl.program_id(0))
    for k in tl.static_range(N):
        if kind == k:
            a, b, c = tl.load(x + i), tl.load(y + i), tl.load(z + i)
            a = a * (k + 1) + b
            b = b + c * a
            tl.store(x + i, a)
            tl.store(y + i, b)
            tl.store(z + i, c + a)


signature = {"x": "*fp32", "y": "*fp32", "z": "*fp32", "kinds": "*i32", "N": "constexpr", "SIZE": "constexpr"}
source = ASTSource(kernel, signature, {"N": int(sys.argv[1]), "SIZE": 1024})
triton.compile(source, target=GPUTarget("cuda", 90, 32))
CODE
cat >judge.py <<'CODE'
import re
import sys

seconds, shares = [], []
for name in sys.argv[2:]:
    # of each stage that the compiler has: its passes, and their total
    text = open(name).read()
    (spent, share), *_ = re.findall(r"([\d.]+) \( *([\d.]+)%\)  TritonGPUCoalesce$", text, re.M)
    seconds.append(float(spent))
    shares.append(float(share))
growth = seconds[1] / seconds[0]
print(
    f"triton {sys.argv[1]}: TritonGPUCoalesce takes {seconds[0]:.2f} s of 64 branches and {seconds[1]:.2f} s of 256: "
    f"{growth:.0f} times; {shares[1]:.0f} % of what its stage takes"
)
if not (growth > 8 and shares[1] > 80):
    raise SystemExit("CHANGED: expected more than 8 times, and more than 80 %")
CODE
for version in 3.7.1 3.9.0; do
    python3 -m venv "env-$version"
    "env-$version/bin/python" -m pip install -q torch==2.13.0 numpy 2>pip.log || { cat pip.log; exit 2; }
    "env-$version/bin/python" -m pip install -q --no-deps "triton==$version" 2>pip.log || { cat pip.log; exit 2; }
    export TRITON_CACHE_DIR="$folder/cache-$version"
    for branches in 64 256; do
        MLIR_ENABLE_TIMING=1 "env-$version/bin/python" branches.py "$branches" >"$version-$branches" 2>&1
    done
    python3 judge.py "$version" "$version-64" "$version-256"
done
echo "as found: four times the branches take the compiler far more than four times as long, in one pass"
