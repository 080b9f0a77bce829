#!/usr/bin/env bash
# torch 2.13.0, CPU: `torch.linalg.vector_norm` of a large float32 tensor is too small: of 30 million normal numbers the L1 norm by 7 % (one
# thread), L3 by 2 %, L2 by 0.2 %. The same sums by `torch.sum` are right to 1e-8.
#
# Guess before running: norms are reductions as `torch.sum` is, which adds in a cascade; so x.norm(p=1) and x.abs().sum() agree to some
# 1e-7, at any size.
# Seen: a norm is added up in float32 from the first element to the last, once for each lane of a vector, with any instruction set. As
# these sums grow each element counts by fewer of its digits, and from 2^24 times its size on not at all. Several threads share L1
# and L3, and lose less; L2 is one thread's, and loses the same. `_foreach_norm`, `Tensor.norm` and
# `clip_grad_norm_` are the same sums: what is clipped to a norm of 1 has one of 1.0017. Norms of rows are right as long as a row is
# short. It is in 2.15.0 too, and torch's tracker has known of it since 2018 (issues 15602, 68326, 151761).
#
# Who is hit: L1 penalties and sparsity measures on the host, norms that are logged, thresholds for clipping that are carried from
# CPU to GPU; an embedding has that many elements. `x.abs().sum()` and `x.square().sum().sqrt()` are right. Our sums of squares
# are exact (docs/numerics.md, "Norms and clipping").
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q torch==2.13.0 numpy 2>pip.log || {
    cat pip.log
    exit 2
}
cat >norms.py <<'CODE'
import torch

torch.set_num_threads(1)
x = torch.randn(30_000_000, generator=torch.Generator().manual_seed(0))
param = torch.nn.Parameter(torch.zeros_like(x))
param.grad = x.clone()
torch.nn.utils.clip_grad_norm_([param], 1.0)


def exact(tensor, p):
    """The norm in float64, of parts so that not much memory is needed."""
    return sum(part.double().abs().pow(p).sum().item() for part in tensor.split(1_000_000)) ** (1 / p)


l1, l2, l3 = (exact(x, p) for p in (1, 2, 3))
found = {
    "L1 norm": (torch.linalg.vector_norm(x, 1).item() / l1 - 1, -0.073),
    "L2 norm": (torch.linalg.vector_norm(x).item() / l2 - 1, -0.0017),
    "L2 norm, foreach": (torch._foreach_norm([x])[0].item() / l2 - 1, -0.0017),
    "L3 norm": (torch.linalg.vector_norm(x, 3).item() / l3 - 1, -0.022),
    "norm after clip_grad_norm_ to 1": (exact(param.grad, 2) - 1, 0.0017),
    "L1 by torch.sum": (x.abs().sum().item() / l1 - 1, 0.0),
    "L2 by torch.sum": (x.square().sum().sqrt().item() / l2 - 1, 0.0),
    "L1 by rows of 1000": (torch.linalg.vector_norm(x.view(-1, 1000), 1, dim=1).sum().item() / l1 - 1, 0.0),
}
for name, (error, _) in found.items():
    print(f"{name}: {error:+.1e} off")
changed = [name for name, (error, seen) in found.items() if abs(error - seen) > max(0.2 * abs(seen), 1e-6)]
if changed:
    raise SystemExit(f"CHANGED: {', '.join(changed)}")
print("as found: norms lose what sums keep")
CODE
for capability in default avx2; do
    echo "ATEN_CPU_CAPABILITY=$capability"
    ATEN_CPU_CAPABILITY=$capability env/bin/python norms.py
done
