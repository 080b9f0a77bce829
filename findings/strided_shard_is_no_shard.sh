#!/usr/bin/env bash
# torch 2.13.0: a parameter that is sharded by tensor parallelism and by FSDP2 in the same dimension has a placement that
# answers "no" to `is_shard()`, `is_replicate()` and `is_partial()` alike.
#
# Guess before running: a placement is one of the three, and `is_shard()` is true of whatever holds a part.
# Seen: `ColwiseParallel` and then `fully_shard` on a 2 x 2 mesh give placements (_StridedShard(dim=0), Shard(dim=0)). The
# first one is none of the three, though either pair of ranks holds half of the rows.
#
# Who is hit: who asks `all(p.is_shard() for p in placements)` or takes what is no shard for a copy, to count parameters,
# memory or norms over ranks: half of each such weight is counted twice or not at all. `not is_replicate()` is right.
# Ours counts so (tests/optimizers/test_wrapped_on_ranks.py, test_clipping_counts_each_part_once).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q torch==2.13.0 numpy 2>pip.log || {
    cat pip.log
    exit 2
}
cat >places.py <<'CODE'
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module


def shard(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=4)
    mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = nn.Sequential(nn.Linear(8, 16, bias=False))
    parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel()})
    fully_shard(model, mesh=mesh["data"])
    weight = model[0].weight
    if rank == 0:
        rows = weight.to_local().shape[0]
        answers = [(p.is_shard(), p.is_replicate(), p.is_partial()) for p in weight.placements]
        print(f"{tuple(weight.placements)}: {rows} of 16 rows here; shard, replicate, partial: {answers}")
        if rows != 4 or answers != [(False, False, False), (True, False, False)]:
            raise SystemExit("CHANGED: expected a first placement that is none of the three")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(shard, (tempfile.mktemp(),), 4)
    print("as found: it holds a part, and is no shard")
CODE
env/bin/python places.py 2>&1 | grep -v Gloo
