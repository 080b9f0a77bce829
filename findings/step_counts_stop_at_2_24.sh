#!/usr/bin/env bash
# torch 2.13.0: optimizers count steps in float32, so that counts stop at 16 777 216, and a rate that depends on them too.
#
# Guess before running: counts are exact at any length of a run, or an optimizer refuses where they cease to be; Adagrad's rate
# lr / (1 + (step - 1) * lr_decay) goes on falling.
# Seen: `state["step"]` is a float32 tensor to which 1 is added; from 2^24 on the sum rounds back. Adagrad's rate stays what it
# was, ASGD's average turns from a mean of all weights into a moving average of the last 2^24 or so, and Adam's state dict
# says 16 777 216 for ever (its bias corrections are 1 by then). Nothing is raised or warned of.
#
# Who is hit: long runs of small steps (online learning, reinforcement learning), and tools that read the count of a checkpoint.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q torch==2.13.0 numpy 2>pip.log || {
    cat pip.log
    exit 2
}
cat >count.py <<'CODE'
import torch

# 1000 steps later, from a state at 2^24 - 1; float64 would have gone on
for name, make in {
    "AdamW": lambda p: torch.optim.AdamW(p),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1.0, lr_decay=1.0),
    "ASGD": lambda p: torch.optim.ASGD(p, t0=0),
}.items():
    p = torch.nn.Parameter(torch.zeros(()))
    optimizer = make([p])
    p.grad = torch.ones(())
    optimizer.step()
    state = optimizer.state[p]
    state["step"].fill_(2**24 - 1)
    for _ in range(1000):
        optimizer.step()
    print(name, state["step"].dtype, int(state["step"]), f"{1 / state['mu'].item():.0f}" if "mu" in state else "")
CODE
env/bin/python count.py 2>log | sed 's/ *$//' | tee found || { cat log; exit 2; }
cat >expected <<'TEXT'
AdamW torch.float32 16777216
Adagrad torch.float32 16777216
ASGD torch.float32 16777216 16777216
TEXT
cmp -s expected found || { echo "CHANGED: expected"; cat expected; exit 1; }
echo "as found: after 16 778 215 steps the counts say 16 777 216"
