#!/usr/bin/env bash
# torch 2.13.0: building an optimizer takes time that grows with the square of its groups, loading a state dict with the
# square of its tensors, also where all of them lie in one group.
#
# Guess before running: both are linear; each parameter and each tensor of state is looked at once. Twice as many take twice as long.
# Seen: four times as many take about sixteen times as long. `load_state_dict` looks through the groups and their lists of parameters for every
# tensor of state (to find out whether its "step" is to stay on the CPU); `add_param_group` puts all parameters before it
# into a new set. This script, on an AMD EPYC: 3000 tensors are loaded in 0.10 s, 12 000 in 1.29 s; 3000 groups are built in
# 0.78 s, 12 000 in 13.4 s.
#
# Who is hit: groups per layer, per expert or per kind of parameter; models of many small tensors. Ours does both in
# linear time (tests/optimizers/test_base_many_groups.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q torch==2.13.0 numpy 2>pip.log || {
    cat pip.log
    exit 2
}
cat >times.py <<'CODE'
import time

import torch


def parameters(count):
    return [torch.nn.Parameter(torch.zeros(1)) for _ in range(count)]


def load(count):
    params = parameters(count)
    optimizer = torch.optim.AdamW(params)
    for p in params:
        p.grad = torch.zeros(1)
    optimizer.step()
    state = optimizer.state_dict()
    start = time.process_time()
    optimizer.load_state_dict(state)
    return time.process_time() - start


def build(count):
    groups = [{"params": [p]} for p in parameters(count)]
    start = time.process_time()
    torch.optim.AdamW(groups)
    return time.process_time() - start


torch.set_num_threads(1)
for name, run in ("load_state_dict, tensors of one group", load), ("AdamW(groups), groups", build):
    few, many = (min(run(count) for _ in range(2)) for count in (3000, 12000))
    growth = many / few
    print(f"{name}: 3000 in {few:.2f} s, 12000 in {many:.2f} s: {growth:.1f} times; linear is 4")
    if growth < 9:
        raise SystemExit("CHANGED: expected about 16")
print("as found: four times as many take about sixteen times as long")
CODE
env/bin/python times.py
