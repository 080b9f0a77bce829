#!/usr/bin/env bash
# Triton 3.7.1 and 3.9.0: a loop with `older = old; old = new` forgets `older`, if both began as the same value. The compiled
# kernel is wrong, without a word; the interpreter is right. 3.4.0 compiles it as written.
#
# Guess before running: a loop carries every name that its body assigns, as in Python; to begin two of them with one value
# (`old, older = zero, zero`) is no more than a short way to write two zeros.
# Seen: which names a loop carries is found out by going through its body once, and comparing each name's value before and
# after by identity. `older = old` is the identical `zero` then, so `older` counts as unchanged, and is `zero` for ever.
#
# Who is hit: recurrences and shift registers in kernels that are checked in the interpreter. Here sums of squares lost all
# below their two highest digits, so that norms on GPUs were off by up to 2^-33 (triton_kernels/exact_sum.py;
# tests/triton_kernels/test_loops.py looks for such loops).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
cat >loop.py <<'CODE'
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def kernel(values, out):
    zero = tl.load(values)
    old, older = zero, zero
    for i in range(8):
        tl.store(out + i, older)
        older = old
        old = tl.load(values + i)


source = ASTSource(kernel, {"values": "*i64", "out": "*i64"})
compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
carried = re.search(r"iter_args\(([^)]*)\)", re.sub(r" loc\([^)]*\)", "", compiled.asm["ttir"]))
print(triton.__version__, carried[1].count("=") if carried else 0)
CODE
for version in 3.4.0 3.7.1 3.9.0; do
    env/bin/python -m pip install -q "triton==$version" setuptools 2>pip.log || { cat pip.log; exit 2; }
    TRITON_CACHE_DIR=$folder/cache env/bin/python loop.py 2>log || { cat log; exit 2; }
done | tee found
cat >expected <<'TEXT'
3.4.0 2
3.7.1 0
3.9.0 0
TEXT
cmp -s expected found || { echo "CHANGED: expected"; cat expected; exit 1; }
echo "as found: in 3.4.0 the loop carries both names; in 3.7.1 and 3.9.0 none, and it stores the first value at every round"
