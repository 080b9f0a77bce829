#!/usr/bin/env bash
# Triton 3.5.1 and 3.9.0 on NVIDIA GPUs: `tl.sqrt` flushes subnormal numbers to zero; in 3.5.1 so do the two functions that are
# named after exact rounding, `tl.div_rn` and `tl.sqrt_rn`. Products, `/`, `tl.fma` and `tl.exp` keep them.
#
# Guess before running: all float32 operations of a kernel treat subnormals alike: kept, as nvcc's default is; those with _rn are
# what IEEE 754 says, in any version.
# Seen, in the PTX that the compiler emits for sm_90 (no GPU is needed): 3.5.1 has div.rn.ftz and sqrt.rn.ftz where 3.9.0 has div.rn
# and sqrt.rn; both have sqrt.approx.ftz for tl.sqrt, beside mul, fma, div.full and ex2 without .ftz. The interpreter
# keeps subnormals everywhere, so tests in it see nothing.
#
# Who is hit: denominators such as Adam's sqrt(exp_avg_sq) + eps with a small eps, where squares of gradients below 1e-19 are
# subnormal; kernels that are compared bit by bit with CUDA. Here triton_kernels/ieee.py writes the two out in PTX.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export TRITON_CACHE_DIR="$folder/cache" TRITON_DEFAULT_FP_FUSION=1
cat >emit.py <<'CODE'
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def kernel(x, y, z):
    i = tl.arange(0, 32)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.store(z + i, tl.div_rn(a, b))
    tl.store(z + 32 + i, tl.sqrt_rn(a))
    tl.store(z + 64 + i, tl.sqrt(a))
    tl.store(z + 96 + i, a / b)
    tl.store(z + 128 + i, a * b)
    tl.store(z + 160 + i, tl.fma(a, b, a))
    tl.store(z + 192 + i, tl.exp(a))


source = ASTSource(kernel, signature=dict.fromkeys("xyz", "*fp32"), constexprs={})
ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
found = set(re.findall(r"\b(?:div|sqrt|mul|fma|ex2)\.[a-z.]*f32", ptx))
print(triton.__version__, *sorted(found))
CODE
for version in 3.5.1 3.9.0; do
    python3 -m venv "env-$version"
    "env-$version/bin/python" -m pip install -q --no-deps "triton==$version" setuptools 2>pip.log || {
        cat pip.log
        exit 2
    }
    "env-$version/bin/python" emit.py 2>log || { cat log; exit 2; }
done | tee found
cat >expected <<'TEXT'
3.5.1 div.full.f32 div.rn.ftz.f32 ex2.approx.f32 fma.rn.f32 mul.f32 sqrt.approx.ftz.f32 sqrt.rn.ftz.f32
3.9.0 div.full.f32 div.rn.f32 ex2.approx.f32 fma.rn.f32 mul.f32 sqrt.approx.ftz.f32 sqrt.rn.f32
TEXT
cmp -s expected found || { echo "CHANGED: expected"; cat expected; exit 1; }
echo "as found: tl.sqrt flushes subnormals in both, div_rn and sqrt_rn in 3.5.1"
