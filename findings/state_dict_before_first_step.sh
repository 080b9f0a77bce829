#!/usr/bin/env bash
# torch 2.13.0: `get_optimizer_state_dict` before the first step changes the training that follows.
#
# Guess before running: a function that returns state changes none; at most it makes the state that the first step would
# have made, so that every run goes on as without it.
# Seen: it takes a step with zero gradients and a rate of zero, and what this step leaves stays. With a gradient of 1 the
# first real step of AdamW is 0.74 of what it would have been (its count is 2, its averages hold a zero), RAdam's 0.53, SGD's
# with momentum 0.9 and dampening 0.5 is half (torch's first momentum is the undamped gradient), and Rprop, which keeps its
# step size in its state, begins at 1e-6 instead of 0.1. ASGD does not move at first. Adagrad, RMSprop and Muon are as
# without.
#
# Who is hit: scripts that write a checkpoint before the first step, or ask for the state in order to load into it and then
# find nothing to load: such a run starts otherwise than one without that line. Here such a step is seen and makes the state
# alone (stackelberg_fused/engine/state_requests.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q torch==2.13.0 numpy 2>pip.log || {
    cat pip.log
    exit 2
}
cat >first_step.py <<'CODE'
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

MAKE = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.1),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1),
    "Muon": lambda p: torch.optim.Muon(p, lr=0.1),
}


def first_step(make, asks):
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    optimizer = make(model.parameters())
    if asks:
        get_optimizer_state_dict(model, optimizer)
    model.weight.grad = torch.ones(1, 1)
    optimizer.step()
    return 1 - model.weight.item()


for name, make in MAKE.items():
    print(f"{name}: {first_step(make, True) / first_step(make, False):.2g} of the first step without asking")
CODE
env/bin/python first_step.py 2>log | tee found || { cat log; exit 2; }
cat >expected <<'TEXT'
AdamW: 0.74 of the first step without asking
RAdam: 0.53 of the first step without asking
SGD: 0.5 of the first step without asking
Rprop: 1e-05 of the first step without asking
ASGD: 0 of the first step without asking
RMSprop: 1 of the first step without asking
Muon: 1 of the first step without asking
TEXT
cmp -s expected found || { echo "CHANGED: expected"; cat expected; exit 1; }
echo "as found: asking for the state changes the first step of five of seven optimizers"
