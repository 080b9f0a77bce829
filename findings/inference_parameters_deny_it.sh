#!/usr/bin/env bash
# torch 2.13.0: a model that was made in inference mode and moved to another dtype or device outside of it says that its
# parameters are no inference tensors, and is still refused as one, by some optimizers.
#
# Guess before running: `is_inference()` says which it is. `model.double()` outside of inference mode puts new tensors into the
# parameters (`p.data = ...`), so they are usual ones afterwards; and torch.autograd.graph.increment_version, which says
# that it leaves tensors alone that were made in inference mode, takes both. Seen: after `double()` both p.is_inference() and
# p.data.is_inference() are False. But the parameter kept what an inference tensor lacks, a version counter: a forward
# pass under autograd raises "Inference tensors do not track version counter", and nothing says of which parameter; AdamW
# and SGD raise "Inplace update to inference tensor", `fused=True` steps without a word, and increment_version raises,
# since it asks is_inference() whom to leave alone. `nn.Parameter(p.detach().clone())` gives a usual one.
#
# Who is hit: whoever builds a model under a global inference mode (notebooks, serving code) and trains it later; and
# optimizers with kernels of their own, which have to tell autograd that memory has changed. Ours raised in one of its
# two readers, and now leaves alone what has no counter (tests/native/test_tensor_abi.py). torch 2.8.0 and 2.15.0 do the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q torch==2.13.0 numpy 2>pip.log || { cat pip.log; exit 2; }
cat >check.py <<'CODE'
import torch
from torch import nn


def said(call):
    try:
        call()
    except RuntimeError as error:
        return str(error).partition(".")[0]
    return "done"


with torch.inference_mode():
    made = nn.Linear(2, 1)
model = made.double()
params = list(model.parameters())
denied = [p.is_inference() or p.data.is_inference() for p in params]
for p in params:
    p.grad = torch.ones_like(p)
usual = nn.Parameter(params[0].detach().clone())
before = [p.detach().tolist() for p in params]
found = {
    "is_inference": any(denied),
    "forward": said(lambda: model(torch.ones(3, 2, dtype=torch.float64))),
    "_version": said(lambda: params[0]._version),
    "increment_version": said(lambda: torch.autograd.graph.increment_version(params)),
    "AdamW": said(lambda: torch.optim.AdamW(params, lr=0.1).step()),
    "SGD": said(lambda: torch.optim.SGD(params, lr=0.1).step()),
    "AdamW, fused": said(lambda: torch.optim.AdamW(params, lr=0.1, fused=True).step()),
    "moved": [p.detach().tolist() for p in params] != before,
    "a copy": said(lambda: nn.functional.linear(torch.ones(3, 2, dtype=torch.float64), usual)),
}
print(f"torch {torch.__version__}")
for name, what in found.items():
    print(f"  {name}: {what}")
refused = "Inplace update to inference tensor outside InferenceMode is not allowed"
expected = {
    "is_inference": False,
    "forward": "Inference tensors do not track version counter",
    "_version": "Inference tensors do not track version counter",
    "increment_version": refused,
    "AdamW": refused,
    "SGD": refused,
    "AdamW, fused": "done",
    "moved": True,
    "a copy": "done",
}
if found != expected:
    raise SystemExit(f"CHANGED: expected {expected}")
CODE
env/bin/python check.py
echo "as found: what says that it is no inference tensor is refused as one"
