#!/usr/bin/env bash
# Triton 3.7.1: in the interpreter `tl.fma` is a product and a sum, each rounded; 3.9.0 rounds once, as every GPU does.
#
# Guess before running: `tl.fma` exists to say "one rounding"; the interpreter, which is there to check kernels, computes it
# in that way too, if need be in float64.
# Seen: a * a - (1 + 2^-11) with a = 1 + 2^-12 is 2^-24. Interpreted by 3.7.1 it is 0: all that a fused operation is used for
# (error terms, compensated sums) vanishes. In 3.9.0 it is 2^-24. The compiler emits fma.rn.f32 in both.
#
# Who is hit: suites that check kernels in the interpreter, and compare bits or compensated arithmetic. Here bits of interpreted
# Triton are compared from 3.9 on, before that to a tolerance (tests/support/tolerances.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q torch==2.13.0 numpy==2.4.6 setuptools 2>pip.log || {
    cat pip.log
    exit 2
}
cat >fma.py <<'CODE'
import torch
import triton
import triton.language as tl


@triton.jit
def kernel(x, z):
    a = tl.load(x)
    tl.store(z, tl.fma(a, a, -tl.load(x + 1)))


x, z = torch.tensor([1 + 2**-12, 1 + 2**-11]), torch.full((), torch.nan)
kernel[(1,)](x, z)
print(triton.__version__, z.item())
CODE
for version in 3.7.1 3.9.0; do
    env/bin/python -m pip install -q --no-deps "triton==$version" 2>pip.log || { cat pip.log; exit 2; }
    TRITON_INTERPRET=1 TRITON_DEFAULT_FP_FUSION=1 env/bin/python fma.py 2>log || { cat log; exit 2; }
done | tee found
cat >expected <<'TEXT'
3.7.1 0.0
3.9.0 5.960464477539063e-08
TEXT
cmp -s expected found || { echo "CHANGED: expected"; cat expected; exit 1; }
echo "as found: interpreted tl.fma rounds twice in 3.7.1 and once in 3.9.0"
