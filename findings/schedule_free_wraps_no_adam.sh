#!/usr/bin/env bash
# schedulefree 1.4.1, torch 2.13.0: ScheduleFreeWrapper around torch's Adam, AdamW or RMSprop raises a KeyError at the first step.
#
# Guess before running: "wrap any optimizer to make it schedule-free", as its docstring says, whose own example is RMSprop.
# Seen: the wrapper puts its "z" into `optimizer.state[p]` before the wrapped step. torch's optimizers make their moments
# where that state is empty (`if len(state) == 0`), so they make none, and look up `exp_avg` (RMSprop: `square_avg`) in
# vain. SGD makes its momentum in another way, and Adagrad makes its state when it is built: these two work.
#
# Who is hit: whoever follows the docstring. Ours makes what is missing beside what others keep in the state
# (tests/integrations/test_schedulefree.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q torch==2.13.0 numpy schedulefree==1.4.1 2>pip.log || {
    cat pip.log
    exit 2
}
cat >wrapped.py <<'CODE'
import schedulefree
import torch


def step(name):
    """What comes of one step, as text."""
    param = torch.nn.Parameter(torch.ones(2))
    base = getattr(torch.optim, name)([param], lr=0.1)
    wrapper = schedulefree.ScheduleFreeWrapper(base, momentum=0.9)
    wrapper.train()
    param.sum().backward()
    try:
        wrapper.step()
    except KeyError as error:
        return f"KeyError {error}"
    return "a step"


expected = {
    "SGD": "a step",
    "Adagrad": "a step",
    "RMSprop": "KeyError 'square_avg'",
    "Adam": "KeyError 'exp_avg'",
    "AdamW": "KeyError 'exp_avg'",
}
for name, text in expected.items():
    found = step(name)
    print(f"{name}: {found}")
    if found != text:
        raise SystemExit(f"CHANGED: expected {text} of {name}")
print("as found: what has to make state in its first step makes none")
CODE
env/bin/python wrapped.py
