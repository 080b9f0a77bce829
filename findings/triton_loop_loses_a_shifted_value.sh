#!/usr/bin/env bash
# triton 3.7.1 and 3.9.0 (with torch 2.13.0): a value that a loop hands on from one variable to the next is compiled as a constant
# if both variables began as one value. The interpreter gives the right result.
#
# Guess before running: what is assigned in the body of a loop is carried from round to round, so that in
#     before, last = zero, zero
#     for i in range(n): before, last = last, tl.load(x + i)
# `before` ends as the last element but one. Seen: compiled, `before` is zero for ever, without a warning. The compiler
# visits the body once to see which variables change, and compares what each stands for before and after by identity. In
# the first round `before` becomes what `last` was, which is the value it has already: so it is no variable of the loop,
# and in the real loop every use of it is that first value. With two separate zeros it is carried.
#
# Who is hit: whoever shifts values through a loop (digits of a sum, neighbours, recurrences of second order) and tests
# with the interpreter alone. It needs no GPU to see: the intermediate code is wrong. Our exact sums were hit
# (triton_kernels/exact_sum.py; tests/ptx/test_kernels.py runs what is compiled).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat >shifted.py <<'CODE'
import sys

import triton
import triton.language as tl


@triton.jit
def one_zero(x, out, n):
    zero = tl.load(x) - tl.load(x)
    before, last = zero, zero
    for i in range(n):
        before, last = last, tl.load(x + i)
    tl.store(out, before)


@triton.jit
def two_zeros(x, out, n):
    before, last = tl.load(x) - tl.load(x), tl.load(x + 1) - tl.load(x + 1)
    for i in range(n):
        before, last = last, tl.load(x + i)
    tl.store(out, before)


def carried(kernel):
    """How many values the compiled loop carries."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {"x": "*i64", "out": "*i64", "n": "i32"}
    code = triton.compile(ASTSource(kernel, signature, {}), target=GPUTarget("cuda", 90, 32)).asm["ttir"]
    loops = [line for line in code.splitlines() if "scf.for" in line]
    return sum(loop.partition("iter_args(")[2].partition("->")[0].count("%") // 2 for loop in loops)


def interpreted(kernel):
    import torch

    x, out = torch.tensor([5, 6, 7, 8]), torch.zeros(1, dtype=torch.int64)
    kernel[(1,)](x, out, 4)
    return out.item()


if sys.argv[1] == "compile":
    found = carried(one_zero), carried(two_zeros)
    print(f"triton {triton.__version__}: values that the compiled loop carries: {found}")
    # of the first loop nothing is left, since `before` needs none of it
    expected = (0, 2)
else:
    found = interpreted(one_zero), interpreted(two_zeros)
    print(f"triton {triton.__version__}: interpreted, the last element but one: {found}")
    expected = (7, 7)
if found != expected:
    raise SystemExit(f"CHANGED: expected {expected}")
CODE
for version in 3.7.1 3.9.0; do
    python3 -m venv "env-$version"
    "env-$version/bin/python" -m pip install -q torch==2.13.0 numpy 2>pip.log || { cat pip.log; exit 2; }
    "env-$version/bin/python" -m pip install -q --no-deps "triton==$version" 2>pip.log || { cat pip.log; exit 2; }
    export TRITON_CACHE_DIR="$folder/cache-$version"
    "env-$version/bin/python" shifted.py compile
    TRITON_INTERPRET=1 "env-$version/bin/python" shifted.py interpret
done
echo "as found: compiled loops lose what began as one value"
