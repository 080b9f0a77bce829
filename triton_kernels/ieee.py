"""Division and square root, correctly rounded with subnormal numbers kept, in every version of Triton.

Before 3.6 `tl.div_rn` and `tl.sqrt_rn` of float32 flush subnormal arguments and results to zero, where the other native
backends keep them: https://github.com/triton-lang/triton/pull/8557. There the instructions are written out.
"""

import triton
import triton.language as tl

_VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
FLUSHES: tl.constexpr = tl.constexpr(_VERSION < (3, 6) and not triton.knobs.runtime.interpret)


@triton.jit
def divide(x, y):
    if FLUSHES:
        return tl.inline_asm_elementwise(
            "div.rn.f32 $0, $1, $2;", "=f,f,f", [x, y], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.div_rn(x, y)


@triton.jit
def square_root(x):
    if FLUSHES:
        return tl.inline_asm_elementwise(
            "sqrt.rn.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.sqrt_rn(x)
