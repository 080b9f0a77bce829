#!/usr/bin/env bash
# torch 2.13.0, FSDP2 on two CPU processes: `set_requires_gradient_sync(False)`, which saves communication, also sums gradients in
# bfloat16. Micro-batches that are small beside the sum are lost.
#
# Guess before running: with MixedPrecisionPolicy(param_dtype=torch.bfloat16) the weights and `.grad` are float32, so gradients of
# micro-batches are bfloat16 numbers that are added in float32, and when ranks exchange them changes nothing but traffic.
# Seen: with an exchange in each micro-batch it is so: 300 gradients of 1 make 300, and one of 1 with 31 of 1/512 makes 1.0605.
# Without, they are added before the reduction, in bfloat16: 256 and 1, for ever. The result is float32 in both cases, which
# looks right. With reduce_dtype=torch.float32 all sums are exact. Its documentation speaks of the reduction, whose
# dtype it is. torch 2.15.0 adds in float32 in either way.
#
# Who is hit: gradient accumulation with FSDP2 in the way that saves communication, without `reduce_dtype`: the more micro-batches,
# the more is lost (docs/sharded.md, "Precision of sums over ranks").
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q torch==2.13.0 numpy 2>pip.log || {
    cat pip.log
    exit 2
}
cat >accumulate.py <<'CODE'
import tempfile
import warnings

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

BATCHES = {"300 of 1": [1.0] * 300, "1 and 31 of 1/512": [1.0] + [2.0**-9] * 31}


def accumulated(values, reduce_dtype, in_each):
    """The gradient of weights after micro-batches whose gradients are `values`, on all ranks."""
    layer = torch.nn.Linear(2, 2, bias=False)
    fully_shard(layer, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=reduce_dtype))
    for number, value in enumerate(values):
        layer.set_requires_gradient_sync(in_each or number == len(values) - 1)
        layer(torch.full((1, 2), value)).sum().backward()
    grad = layer.weight.grad.full_tensor()
    assert layer.weight.dtype == grad.dtype == torch.float32
    return round(grad.mean().item(), 4)


def run(rank, store):
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for reduce_dtype in (None, torch.float32):
        for name, values in BATCHES.items():
            each, last = (accumulated(values, reduce_dtype, in_each) for in_each in (True, False))
            if rank == 0:
                print(f"reduce_dtype={reduce_dtype}, {name}: synced in each {each}, in the last {last}", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, (f"{folder}/store",), nprocs=2)
CODE
CUDA_VISIBLE_DEVICES="" env/bin/python accumulate.py 2>log | tee found || { cat log; exit 2; }
cat >expected <<'TEXT'
reduce_dtype=None, 300 of 1: synced in each 300.0, in the last 256.0
reduce_dtype=None, 1 and 31 of 1/512: synced in each 1.0605, in the last 1.0
reduce_dtype=torch.float32, 300 of 1: synced in each 300.0, in the last 300.0
reduce_dtype=torch.float32, 1 and 31 of 1/512: synced in each 1.0605, in the last 1.0605
TEXT
cmp -s expected found || { echo "CHANGED: expected"; cat expected; exit 1; }
echo "as found: where no gradient is exchanged, sums are in bfloat16"
