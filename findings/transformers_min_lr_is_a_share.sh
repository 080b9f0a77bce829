#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0: `min_lr` and `lr_end` of a schedule are divided by the rate in `optimizer.defaults`, which no
# parameter need have. With rates by group no group ends where the name says, and rates may rise where they should fall.
#
# Guess before running: with groups of different rates each one ends at `min_lr` (or `lr_end`), since these are absolute rates and
# `min_lr_rate` is the relative one; or the call is refused.
# Seen: `get_scheduler("cosine_with_min_lr", ...)` takes min_lr / defaults["lr"] as everybody's share. That is the constructor's
# `lr`, the class's 1e-3 where every group brings its own. Groups of 2e-5 and 2e-4 with min_lr=1e-6 end at 2e-8 and 2e-7. With
# SGD's groups of 0.1 and 0.5 and min_lr=0.01 the share is ten, and the cosine climbs to 1 and 5. "polynomial" does the
# same with `lr_end`, and refuses 0.01 there, for it is "not smaller than" a rate of 0.001 that nobody set.
#
# Who is hit: layer-wise rates, a head beside a body, LoRA+: whatever has rates by group. `min_lr_rate` means what it says, as do the
# schedules whose end is 0 (docs/training_step.md, the table of schedulers).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q torch==2.13.0 numpy transformers==5.24.0 2>pip.log || {
    cat pip.log
    exit 2
}
cat >ends.py <<'CODE'
import torch
from transformers import get_scheduler


def ends(name, rule, rates, settings, **constructor):
    """The rates of two groups after all steps of a schedule without warm-up."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(()))], "lr": rate} for rate in rates]
    optimizer = rule(groups, **constructor)
    try:
        scheduler = get_scheduler(name, optimizer, 0, 100, scheduler_specific_kwargs=settings)
    except ValueError as error:
        return f"ValueError, {error}"
    for _ in range(100):
        optimizer.step()
        scheduler.step()
    return " ".join(f"{group['lr']:.3g}" for group in optimizer.param_groups)


adamw, sgd = torch.optim.AdamW, torch.optim.SGD
low, high = (2e-5, 2e-4), (0.1, 0.5)
for name, end in (("cosine_with_min_lr", "min_lr"), ("polynomial", "lr_end")):
    print(f"{name}, {end}=1e-6, AdamW {low}: {ends(name, adamw, low, {end: 1e-6})}")
    print(f"{name}, {end}=1e-6, AdamW {low}, lr=2e-5: {ends(name, adamw, low, {end: 1e-6}, lr=2e-5)}")
    print(f"{name}, {end}=0.01, SGD {high}: {ends(name, sgd, high, {end: 0.01})}")
print(f"cosine_with_min_lr, min_lr_rate=0.1, SGD {high}: {ends('cosine_with_min_lr', sgd, high, {'min_lr_rate': 0.1})}")
CODE
env/bin/python ends.py 2>log | tee found || { cat log; exit 2; }
cat >expected <<'TEXT'
cosine_with_min_lr, min_lr=1e-6, AdamW (2e-05, 0.0002): 2e-08 2e-07
cosine_with_min_lr, min_lr=1e-6, AdamW (2e-05, 0.0002), lr=2e-5: 1e-06 1e-05
cosine_with_min_lr, min_lr=0.01, SGD (0.1, 0.5): 1 5
polynomial, lr_end=1e-6, AdamW (2e-05, 0.0002): 2e-08 2e-07
polynomial, lr_end=1e-6, AdamW (2e-05, 0.0002), lr=2e-5: 1e-06 1e-05
polynomial, lr_end=0.01, SGD (0.1, 0.5): ValueError, lr_end (0.01) must be smaller than initial lr (0.001)
cosine_with_min_lr, min_lr_rate=0.1, SGD (0.1, 0.5): 0.01 0.05
TEXT
cmp -s expected found || { echo "CHANGED: expected"; cat expected; exit 1; }
echo "as found: the floor of each group is a share, of a rate that is none of theirs"
