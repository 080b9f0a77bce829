#!/usr/bin/env bash
# torch 2.13.0 (CPU build): the first optimizer of a process outlives its last reference, with its parameters and state, until the garbage
# collector comes by; later ones are freed at once.
#
# Guess before running: an optimizer is freed when its last reference goes, the first one as any other.
# Seen: the first `torch.optim.SGD` is alive, and so is its parameter; the second one is not. Its constructor is the first
# to call `torch._compile`'s wrapper, which imports `torch._dynamo`; an exception that is caught during that import keeps
# the frames in a cycle, and the wrapper's frame holds the arguments it was called with: the optimizer. torch 2.8.0 and
# 2.15.0 (CUDA builds) free it.
#
# Who is hit: who measures the memory of a first model, or turns the collector off for speed (`gc.freeze()`,
# `gc.disable()` as training loops do) and builds a trial model first: that one stays for ever. To be rid of it, build an
# optimizer of one small parameter first, or import `torch._dynamo`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q torch==2.13.0 numpy 2>pip.log || {
    cat pip.log
    exit 2
}
cat >lives.py <<'CODE'
import gc
import sys
import weakref

import torch


def live():
    """An optimizer that is gone when this returns; tells whether it and its parameter are."""
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([param], lr=0.1)
    return weakref.ref(optimizer), weakref.ref(param)


gc.disable()
if sys.argv[1:] == ["imported"]:
    import torch._dynamo
    gc.collect()
lives = [live() for _ in range(3)]
print(sys.argv[1:], "alive:", [[reference() is not None for reference in each] for each in lives])
expected = [True, False, False] if sys.argv[1:] == [] else [False] * 3
if [each[0]() is not None for each in lives] != expected:
    raise SystemExit(f"CHANGED: expected {expected}")
CODE
env/bin/python lives.py
env/bin/python lives.py imported
echo "as found: the first optimizer is kept, unless torch._dynamo was imported before"
