#!/usr/bin/env bash
# torch 2.13.0: SGD(momentum=0.9, fused=True) whose first step a gradient scaler skips goes on with momentum that nobody
# has written.
#
# Guess before running: a skipped step leaves no state, or zeros, so that the next one begins as if it were the first.
# Seen: the skipped step makes `momentum_buffer` with `torch.empty_like`, and the kernel, told to skip, leaves it as it is.
# The next step finds a buffer and multiplies it by the momentum: weights become whatever lay in that memory. The first
# step is the one that scalers skip most, since scales begin high. To show it whatever memory holds, this script asks
# torch to fill new memory with NaN (`torch.use_deterministic_algorithms`): weights are NaN after the second step. Without
# `fused=True` they are right, and with Adam, whose moments begin as zeros.
#
# Who is hit: mixed precision with fused SGD. Ours makes zeros, and forgets momentum that was made for a step that was
# skipped (tests/layout/test_scaling.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q torch==2.13.0 numpy 2>pip.log || {
    cat pip.log
    exit 2
}
cat >skip.py <<'CODE'
import torch

torch.use_deterministic_algorithms(True)
assert torch.utils.deterministic.fill_uninitialized_memory


def train(make):
    """A parameter after a step that is skipped, for its gradient is infinite, and one that is not."""
    param = torch.nn.Parameter(torch.ones(4))
    optimizer = make([param])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor in (float("inf"), 1.0):
        scaler.scale((param * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return param.detach()


rules = {
    "SGD, fused": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, fused=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9),
    "Adam, fused": lambda p: torch.optim.Adam(p, lr=0.5, fused=True),
}
found = {name: train(make) for name, make in rules.items()}
for name, param in found.items():
    print(f"{name}: {param.tolist()}")
if not found["SGD, fused"].isnan().all():
    raise SystemExit("CHANGED: expected NaN, from memory that was not written")
for name in ("SGD", "Adam, fused"):
    if not torch.allclose(found[name], torch.full((4,), 0.5)):
        raise SystemExit(f"CHANGED: expected 0.5 of {name}")
print("as found: fused SGD goes on with a buffer that the skipped step did not write")
CODE
env/bin/python skip.py
