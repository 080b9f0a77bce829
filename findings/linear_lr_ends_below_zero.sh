#!/usr/bin/env bash
# torch 2.13.0: `LinearLR` with its default start_factor and end_factor=0 ends below zero nearly as often as above, hardly at 0.
#
# Guess before running: after total_iters steps the rate is end_factor times the initial rate, here exactly 0; if rounding
# interferes, then at most upwards, since no optimizer of torch accepts a rate below zero.
# Seen: the rate is multiplied from step to step, so that the last difference does not cancel. Of 800 runs (four rates, 1 to 200
# steps) 360 end below zero, 432 above, 8 at zero; with start_factor=0.5 or 1 all end at zero. What is left is about 1e-18.
# Torch steps uphill by it without a word; a constructor refuses the same number as `lr` ("Invalid learning rate"), but
# takes it in a param group.
#
# Who is hit: code that checks rates at each step, takes their logarithm, or compares them with 0 to see that training is over.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q torch==2.13.0 numpy 2>pip.log || {
    cat pip.log
    exit 2
}
cat >ends.py <<'CODE'
import torch
from torch.optim.lr_scheduler import LinearLR


def run(lr, steps, **how):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=lr)
    scheduler = LinearLR(optimizer, end_factor=0.0, total_iters=steps, **how)
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
    return optimizer


for how in {}, {"start_factor": 0.5}, {"start_factor": 1.0}:
    runs = [run(lr, steps, **how) for lr in (1e-1, 1e-3, 3e-4, 1e-4) for steps in range(1, 201)]
    ends = [r.param_groups[0]["lr"] for r in runs]
    print(how or "default", sum(e < 0 for e in ends), "below,", sum(e > 0 for e in ends), "above,", ends.count(0), "at zero")
    if min(ends) < 0:
        p = torch.nn.Parameter(torch.zeros(()))
        torch.optim.SGD([{"params": [p], "lr": min(ends)}])
        print("as the rate of a group: accepted")
        try:
            torch.optim.SGD([p], lr=min(ends))
        except ValueError as error:
            print(f"as lr: {str(error).split(':')[0]}")
CODE
env/bin/python ends.py 2>log | tee found || { cat log; exit 2; }
cat >expected <<'TEXT'
default 360 below, 432 above, 8 at zero
as the rate of a group: accepted
as lr: Invalid learning rate
{'start_factor': 0.5} 0 below, 0 above, 800 at zero
{'start_factor': 1.0} 0 below, 0 above, 800 at zero
TEXT
cmp -s expected found || { echo "CHANGED: expected"; cat expected; exit 1; }
echo "as found: with the default start 360 of 800 runs end below zero"
