#!/usr/bin/env bash
# accelerate 1.15.0: of parameters that lie one behind the other in a flat buffer, `save_model` and `save_state` write one.
#
# Guess before running: all four parameters are written. They share a storage, but no two of them overlap, and that is what
# counts for tied weights: safetensors groups tensors of one storage by the ranges that they fill.
# Seen: accelerate takes every tensor of one storage for the same tensor, keeps the first name and drops the others. It warns
# ("Removed shared tensor ... This should be OK"); the file that remains cannot be loaded into the model again. torch.save
# keeps all four.
#
# Who is hit: whoever flattens parameters or state into one buffer (optimizers with flat buffers, hand-made contiguous
# parameters) and lets accelerate write the checkpoint. Here every parameter in an arena has a storage of its own
# (stackelberg_fused/memory/arena.py), which tests/memory/test_arena.py holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q torch==2.13.0 numpy accelerate==1.15.0 safetensors==0.8.0 2>pip.log || {
    cat pip.log
    exit 2
}
cat >flat.py <<'CODE'
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
parameters = list(model.parameters())
flat = torch.cat([p.detach().flatten() for p in parameters])
for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
    p.data = part.view_as(p)  # neighbours, none overlaps another

accelerator = Accelerator(cpu=True)
accelerator.save_model(model, "model")
accelerator.prepare(model)
accelerator.save_state("state")
torch.save(model.state_dict(), "model.pt")
for what, found in {
    "save_model": load_file("model/model.safetensors"),
    "save_state": load_file("state/model.safetensors"),
    "torch.save": torch.load("model.pt"),
}.items():
    print(f"{what}: {', '.join(sorted(found))}")
CODE
env/bin/python flat.py 2>log | tee found || { cat log; exit 2; }
grep "Removed shared tensor" log | head -1
cat >expected <<'TEXT'
save_model: 0.weight
save_state: 0.weight
torch.save: 0.bias, 0.weight, 1.bias, 1.weight
TEXT
cmp -s expected found || { echo "CHANGED: expected"; cat expected; exit 1; }
echo "as found: accelerate writes one of four parameters, torch.save all"
