"""Many steps while groups, settings and state change: memory stays flat, and the results are those of the reference."""

from __future__ import annotations

import copy
import gc
import random
from pathlib import Path
from typing import Any

import torch
from soak import report_of_part, scale_of_part
from torch import nn

import stackelberg_fused as sf

STEPS = 100_000
EVERY = 100  # steps from one change to the next
MOST_GROUPS = 12
SIDES = {
    "cpu": {"backend": "cpu"},
    "cpu, not moved": {"backend": "cpu", "flatten": False},
    "reference": {"backend": "reference"},
}
# what roundings of each step add up to; parameters are of order 1, and decay forgets them
NEAR = {"rtol": 1e-4, "atol": 1e-4}


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def _group(number: int, role: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(number)
    shape = [(17,), (5, 7), (64,), ()][number % 4]
    return {
        "params": [nn.Parameter(torch.randn(shape, generator=generator))],
        "role": role,
        "weight_decay": 0.1,
    }


def _change(optimizer: Any, number: int) -> Any:
    """One change that a user may make; returns the optimizer to go on with."""
    choice = random.Random(number)
    groups = optimizer.param_groups
    group = choice.choice(groups)
    what = choice.choice(["add", "start anew", "edit", "replace", "freeze", "reload", "copy"])
    if what == "add" and len(groups) < MOST_GROUPS:
        optimizer.add_param_group(_group(number, choice.choice(["body", "head"])))
    elif what == "start anew" and len(groups) == MOST_GROUPS:
        kept = groups[:2]
        return type(optimizer)(
            kept, backend=optimizer.backend, flatten=optimizer._options["flatten"]
        )
    elif what == "edit":
        group.update(
            choice.choice(
                [
                    {"betas": (0.8, 0.99)},
                    {"weight_decay": 0.2},
                    {"ema_decay": 0.9},
                    {"ema_decay": None},
                ]
            )
        )
    elif what == "replace":
        old = group["params"][0]
        group["params"][0] = nn.Parameter(old.detach().clone())
        optimizer.state.pop(old, None)
    elif what == "freeze":
        p = group["params"][0]
        p.requires_grad_(not p.requires_grad)
    elif what == "reload":
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    elif what == "copy":
        return copy.deepcopy(optimizer)
    return optimizer


def main() -> None:
    torch.set_num_threads(1)
    steps = max(2000, round(STEPS * scale_of_part()))
    sides = {
        name: sf.StackelbergAdamW([_group(0, "body"), _group(1, "head")], lr=1e-3, **how)
        for name, how in SIDES.items()
    }
    noise = torch.randn(2**16, generator=torch.Generator().manual_seed(0))
    resident, changes = {}, 0
    for step in range(steps):
        if step % EVERY == EVERY - 1:
            changes += 1
            sides = {name: _change(optimizer, step) for name, optimizer in sides.items()}
        rate = 1e-3 * (1 + step % 1000 / 1000)
        for optimizer in sides.values():
            for number, group in enumerate(optimizer.param_groups):
                group["lr"] = rate if group["role"] == "body" else 2 * rate
                for p in group["params"]:
                    start = (step * 131 + number * 997) % (len(noise) - 64)
                    p.grad = (
                        noise[start : start + p.numel()].view(p.shape).clone()
                        if p.requires_grad
                        else None
                    )
            optimizer.step()
        if step in (steps // 5, steps - 1):
            gc.collect()
            resident[step] = _resident()
    first, *others = [
        [p.detach() for g in o.param_groups for p in g["params"]] for o in sides.values()
    ]
    assert all(map(torch.equal, first, others[0])), "parameters that are moved differ"
    farthest = 0.0
    for p, q in zip(first, others[1], strict=True):
        torch.testing.assert_close(p, q, **NEAR)
        farthest = max(farthest, float((p - q).abs().max()))
    grown = (resident[steps - 1] - resident[steps // 5]) / 2**20
    assert grown < 16, f"{grown:.1f} MiB more than after a fifth of the steps"
    report_of_part(
        {
            "steps": steps,
            "changes": changes,
            "grown_mib": round(grown, 2),
            "farthest_from_reference": farthest,
        }
    )


if __name__ == "__main__":
    main()
