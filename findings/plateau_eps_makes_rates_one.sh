#!/usr/bin/env bash
# torch 2.13.0: `ReduceLROnPlateau` with its defaults ends groups whose rates are 1 : 10 at one and the same rate.
#
# Guess before running: every reduction multiplies all groups by `factor`, so their ratio stays, unless `min_lr` is given.
# Seen: a group is left out of a reduction that would change its rate by less than `eps` (1e-8), which is not relative to the
# rate: 3e-4 and 3e-3 both stop at 3e-9. With eps=0 the ratio stays. `min_lr` takes a list with a number for each group,
# `eps` does not.
#
# Who is hit: long runs of anything with rates by part. Ours names the scheduler and its `eps` once, when it happens
# (tests/groups/test_rate_warnings.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q torch==2.13.0 numpy 2>pip.log || {
    cat pip.log
    exit 2
}
cat >plateau.py <<'CODE'
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau


def ends(**how):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(()))], "lr": lr} for lr in (3e-4, 3e-3)]
    optimizer = torch.optim.AdamW(groups)
    scheduler = ReduceLROnPlateau(optimizer, patience=0, **how)
    for _ in range(20):
        scheduler.step(1.0)  # no improvement
    return [f"{group['lr']:.0e}" for group in optimizer.param_groups]


print("defaults:", *ends())
print("eps=0:", *ends(eps=0.0))
try:
    print("eps of each group:", *ends(eps=[1e-9, 1e-8]))
except TypeError:
    print("eps of each group: TypeError")
CODE
env/bin/python plateau.py 2>log | tee found || { cat log; exit 2; }
cat >expected <<'TEXT'
defaults: 3e-09 3e-09
eps=0: 3e-23 3e-22
eps of each group: TypeError
TEXT
cmp -s expected found || { echo "CHANGED: expected"; cat expected; exit 1; }
echo "as found: two rates end as one"
