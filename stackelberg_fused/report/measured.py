"""What an optimizer tells about its last step: rates, norms, clip factors. Nothing here waits for a device."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor

MOST_RATES = 12  # rates of a step's line; of more groups a summary is kept

Number = float | Tensor


def kept(value: Any) -> Number:
    """Return a number as it is now: a float, or a copy that stays on its device until somebody reads it.

    Raises:
        TypeError: it is neither a number nor a tensor.
        ValueError: it is a tensor of several elements.
    """
    if not isinstance(value, Tensor):
        return float(value)
    if value.numel() != 1:
        raise ValueError(f"a number was expected, got a tensor of shape {list(value.shape)}")
    value = value.detach()
    # a copy: a CUDA graph writes the next step's loss to the same place
    return float(value) if value.device.type == "cpu" else value.reshape(()).clone()


def step_values(optimizer: Any) -> dict[str, Any]:
    """Return the values of `recorder.Recorder.step` that an optimizer tells, after its step and before `zero_grad()`.

    Args:
        optimizer: one of this library or of torch.

    Returns:
        "rate" by group and, where they are known, "grad_norm" and "clip_factor" by role, and "skipped".
    """
    last = getattr(optimizer, "last_step", None)
    clip_factor = getattr(last, "clip_factor", None)
    skipped = getattr(last, "skipped", None)
    found = {
        "rate": rates(optimizer.param_groups),
        "grad_norm": gradient_norms(optimizer),
        "clip_factor": clip_factor and {role: kept(value) for role, value in clip_factor.items()},
        "skipped": None if skipped is None else kept(skipped),
    }
    return {name: value for name, value in found.items() if value is not None}


def rates(groups: list[dict[str, Any]]) -> dict[str, Number]:
    """Return the rate of each group by its name: its "name", else its role, else its number.

    Groups that share name, initial rate and rate are one. Of more than `MOST_RATES` the lowest, the median and the
    highest are returned.
    """
    first: dict[tuple[str, float, float], tuple[int, Any]] = {}
    for index, group in enumerate(groups):
        name = str(group.get("name") or group.get("role") or f"group {index}")
        # the initial rate too, since a schedule may begin with 0 for all
        both = [_known(rate, index) for rate in (group.get("initial_lr", group["lr"]), group["lr"])]
        first.setdefault((name, both[0], both[1]), (index, group["lr"]))
    names = [name for name, *_ in first]
    found = {
        f"{name} {index}" if names.count(name) > 1 else name: kept(rate)
        for (name, *_), (index, rate) in first.items()
    }
    if len(found) <= MOST_RATES:
        return found
    values = [value for value in found.values() if not isinstance(value, Tensor)]
    if len(values) < len(found):  # to sort them would wait for the device
        return dict(list(found.items())[:MOST_RATES])
    return {"lowest": min(values), "median": statistics.median(values), "highest": max(values)}


def _known(rate: Any, index: int) -> float:
    """Return a rate, or what no other group has where only a device knows it."""
    on_device = isinstance(rate, Tensor) and rate.device.type != "cpu"
    return float(index) if on_device else float(rate)


def gradient_norms(optimizer: Any) -> dict[str, Number] | None:
    """Return the norm of the gradients by role and "total": those of `last_step`, else of what `.grad` holds now.

    None where it cannot be known: gradients are sparse, gone, sharded, or hold the scale of a loss.
    """
    last = getattr(optimizer, "last_step", None)
    if last is not None and last.grad_norm is not None:
        return {role: kept(norm) for role, norm in last.grad_norm.items()}
    if last is not None and last.skipped is not None:
        return None
    by_role: dict[str, list[Tensor]] = {}
    for group in optimizer.param_groups:
        grads = [p.grad for p in group["params"] if p.grad is not None]
        by_role.setdefault(str(group.get("role", "all")), []).extend(grads)
    grads = [grad for some in by_role.values() for grad in some]
    # the norm of shards would ask other ranks, which may not record
    if not grads or any(g.layout != torch.strided or hasattr(g, "full_tensor") for g in grads):
        return None
    norms = {
        role: torch.nn.utils.get_total_norm(some).float() for role, some in by_role.items() if some
    }
    device = next(iter(norms.values())).device
    total = torch.stack([norm.to(device) for norm in norms.values()]).norm()
    norms.pop("all", None)
    return {name: kept(norm) for name, norm in {**norms, "total": total}.items()}
