#!/usr/bin/env bash
# torch 2.13.0, FullyShardedDataParallel with use_orig_params=True on two CPU processes: `FSDP.optim_state_dict` returns
# the second moment of AdamW as both moments. Saving and loading it goes on with a wrong momentum, and nothing says so.
#
# Guess before running: what is gathered is what the ranks hold, so that a save and a load change nothing.
# Seen: each rank holds exp_avg = 0.2 and exp_avg_sq = 0.004 (one step with a gradient of 2). In the gathered state both
# are 0.004, and so they are in an optimizer that loads it. With use_orig_params=False both are right.
#
# Who is hit: FSDP1 on the host (tests, small jobs, machines without a GPU) with torch's own optimizers or any other one that
# has two states of one shape. Whether it happens on GPUs was not tried. FSDP2 (`fully_shard`) has it right: docs/sharded.md.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q torch==2.13.0 numpy 2>pip.log || {
    cat pip.log
    exit 2
}
cat >gather.py <<'CODE'
import tempfile
import warnings

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP


def train(rank, store, use_orig_params):
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    layer = nn.Linear(5, 7, bias=False)
    model = FSDP(layer, use_orig_params=use_orig_params, device_id=torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 5)).sum().backward()  # a gradient of 2 everywhere
    optimizer.step()
    own = optimizer.state[next(model.parameters())]
    gathered = FSDP.optim_state_dict(model, optimizer)
    if rank == 0:
        (found,) = gathered["state"].values()
        first = {name: round(found[name].flatten()[0].item(), 6) for name in ("exp_avg", "exp_avg_sq")}
        held = {name: round(own[name].flatten()[0].item(), 6) for name in first}
        print(f"use_orig_params={use_orig_params}: held {held}, gathered {first}")
        expected = {**held, "exp_avg": held["exp_avg_sq"]} if use_orig_params else held
        if held != {"exp_avg": 0.2, "exp_avg_sq": 0.004} or first != expected:
            raise SystemExit(f"CHANGED: expected {expected}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    for use_orig_params in (True, False):
        mp.spawn(train, (tempfile.mktemp(), use_orig_params), 2)
    print("as found: exp_avg_sq is gathered in the place of exp_avg, with use_orig_params=True")
CODE
env/bin/python gather.py 2>&1 | grep -v Gloo
