"""One small model in the wrappers of torch.distributed, for tests on several ranks.

Its sizes are odd on purpose: seven rows are not divisible by two or three ranks, and the second layer has fewer rows
than there are ranks, so that some hold nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import normal
from torch import Tensor, nn

_VERSION = tuple(int(word) for word in torch.__version__.split("+")[0].split(".")[:2])
# torch 2.8 does none of it; it also loads wrong rows of tensors that two dimensions of a mesh cut
AVERAGES = MARKS = LOADS_STRIDED = _VERSION >= (2, 13)
needs_averages = pytest.mark.skipif(
    not AVERAGES,
    reason="FSDP2 over gloo adds gradients up in this torch, and does not average them",
)
ROWS = 12  # of a batch, for 1, 2, 3 or 4 ranks


def plain() -> nn.Sequential:
    """The body is the first two layers, the head the last one."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2), nn.Tanh(), nn.Linear(2, 4))


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """A body group and a head group of parameters with names; a wrapper's prefixes do not count."""
    last = "4."
    named = [(_bare(name), p) for name, p in model.named_parameters()]
    return [
        {"params": [(n, p) for n, p in named if not n.startswith(last)], "lr": 0.01},
        {"params": [(n, p) for n, p in named if n.startswith(last)], "lr": 0.1, "role": "head"},
    ]


def _bare(name: str) -> str:
    for prefix in ("_fsdp_wrapped_module.", "module."):
        name = name.replace(prefix, "")
    return name


def _mesh(*shape: int) -> Any:
    names = ("outer", "inner")[-len(shape) :]
    return dist.init_device_mesh("cpu", shape, mesh_dim_names=names)


def _layers(model: nn.Module) -> list[nn.Module]:
    return [part for part in model if isinstance(part, nn.Linear)]


def ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def _fsdp1(model: nn.Module, **how: Any) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    policy = ModuleWrapPolicy({nn.Linear})
    return FullyShardedDataParallel(
        model, auto_wrap_policy=policy, device_id=torch.device("cpu"), **how
    )


def fsdp1(model: nn.Module) -> nn.Module:
    return _fsdp1(model, use_orig_params=True)


def fsdp1_whole(model: nn.Module) -> nn.Module:
    """Its parameters are flattened, and whole on all ranks."""
    from torch.distributed.fsdp import ShardingStrategy

    return _fsdp1(model, use_orig_params=True, sharding_strategy=ShardingStrategy.NO_SHARD)


def fsdp1_together(model: nn.Module) -> nn.Module:
    """Of all parameters of the model one is made, so that some lie on one rank alone."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))


def fsdp1_flat(model: nn.Module) -> nn.Module:
    return _fsdp1(model, use_orig_params=False)


def fsdp2(model: nn.Module, mesh: Any = None, **how: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    mesh = mesh or _mesh(dist.get_world_size())
    for part in (*_layers(model), model):
        fully_shard(part, mesh=mesh, **how)
    return model


def fsdp2_mixed(model: nn.Module) -> nn.Module:
    """Computes in bfloat16, and sums gradients in float32."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, output_dtype=torch.float32)
    return fsdp2(model, mp_policy=policy)


def hsdp(model: nn.Module) -> nn.Module:
    return fsdp2(model, _mesh(2, 2))


def tensor_parallel(model: nn.Module) -> nn.Module:
    """Tensor parallel over the inner pairs of ranks, sharded over the outer ones."""
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = _mesh(2, 2)
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    # the width that the inner pairs share has to be even there
    parallelize_module(model, mesh["inner"], plan)
    return fsdp2(model, mesh["outer"])


def unwrapped(model: nn.Module) -> nn.Module:
    return model


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "none": unwrapped,
    "DDP": ddp,
    "FSDP1": fsdp1,
    "FSDP1, flat": fsdp1_flat,
    "FSDP2": fsdp2,
    "FSDP2, mixed": fsdp2_mixed,
    "HSDP": hsdp,
    "TP + FSDP2": tensor_parallel,
}


@contextmanager
def reducing(model: nn.Module, is_last: bool) -> Iterator[None]:
    """Within it, gradients are summed over ranks only if the micro-batch is the last one of its step."""
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(is_last)
    with nullcontext() if is_last or not hasattr(model, "no_sync") else model.no_sync():
        yield


def batches(steps: int, wrapper: str) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's rows of each batch; of a tensor parallel pair both have the same."""
    world, rank = dist.get_world_size(), dist.get_rank()
    if wrapper == "TP + FSDP2":
        world, rank = world // 2, rank // 2
    if wrapper == "none":
        world, rank = 1, 0
    rows = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    for step in range(steps):
        yield normal((ROWS, 5), 2 * step)[rows], normal((ROWS, 4), 2 * step + 1)[rows]


def _like(shard: Any, local: Tensor) -> Any:
    """A DTensor that is laid out as another one."""
    from torch.distributed.tensor import DTensor

    mesh, placements = shard.device_mesh, shard.placements
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=shard.shape, stride=shard.stride()
    )


def whole(tensor: Any) -> Tensor:
    """A tensor, or all of the tensor of which this rank has a shard."""
    if not hasattr(tensor, "full_tensor"):
        return tensor
    if tensor.dtype is torch.int16:  # neither gloo nor NCCL has it
        # no operation on the shard itself: torch 2.8 remembers the process groups of earlier ones
        return _like(tensor, tensor.to_local().int()).full_tensor().short()
    return tensor.full_tensor()


def local(tensor: Any) -> Tensor:
    """What this rank has of a tensor."""
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach()
