"""Param groups of published rules: LoRA+ and muP."""

from __future__ import annotations

from typing import Any

from torch import nn

from .builders import Group, check_at_least_zero, check_number, group_of
from .model_parameters import ModelParameter, model_parameters, refuse_unknown

LORA_B = ("lora_B", "lora_embedding_B")


def lora_plus_groups(
    model: nn.Module, *, lr: float, ratio: float = 16.0, weight_decay: float | None = None
) -> list[Group]:
    """Param groups of LoRA+ (Hayou, Ghosh and Yu 2024, arXiv 2402.12354): B moves `ratio` times faster than A.

    Every matrix B is fast and all else is slow. PEFT's `create_loraplus_optimizer` gives adapters of embeddings a rate
    of their own, and vectors that are trained (biases, norms of `modules_to_save`) that of B.

    Args:
        model: with adapters of PEFT, or others whose parameters have "lora_B" in their names. Frozen parameters are
            left out.
        lr: of the matrices A, and of all else that is trained (`modules_to_save`).
        ratio: rate of B over that of A, at least 1; 16 is the paper's first choice.
        weight_decay: of all of these groups; None: the optimizer's. (PEFT's `create_loraplus_optimizer` has one for
            itself, `loraplus_weight_decay`, and ignores that of the optimizer.)

    Returns:
        Group dicts with "params" as (name, parameter) pairs, "lr", "name", and "role": B is the head.

    Raises:
        ValueError: nothing that is trained is a matrix B, `ratio` is below 1, or `lr` or `weight_decay` is negative.
        TypeError: the model is no nn.Module, or one of these is no number.

    Example:
        >>> a, b = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
        >>> adapter = nn.ModuleDict({"lora_A": a, "lora_B": b})  # PEFT names them so
        >>> [(group["name"], group["lr"]) for group in sf.lora_plus_groups(adapter, lr=1e-4)]
        [('A and others', 0.0001), ('B', 0.0016)]
    """
    check_number("ratio", ratio)
    if not ratio >= 1.0:
        raise ValueError(f"ratio must be >= 1, got {ratio!r}")
    _check_numbers(lr, weight_decay)
    trained = [one for one in model_parameters(model) if one.param.requires_grad]
    fast = [one for one in trained if _is_b(one)]
    if not fast:
        raise ValueError(
            "no parameter that is trained has 'lora_B' in its name: add the adapters first (peft.get_peft_model)"
        )
    slow = [one for one in trained if not _is_b(one)]
    more = {} if weight_decay is None else {"weight_decay": weight_decay}
    groups = [
        group_of(slow, {"lr": lr, "role": "body", "name": "A and others", **more}),
        group_of(fast, {"lr": lr * ratio, "role": "head", "name": "B", **more}),
    ]
    return [group for group in groups if group["params"]]


def _is_b(one: ModelParameter) -> bool:
    parts = {part for name in one.names for part in name.split(".")}
    return not parts.isdisjoint(LORA_B)


def _check_numbers(lr: float, weight_decay: float | None) -> None:
    check_at_least_zero("lr", lr)
    if weight_decay is not None:
        check_at_least_zero("weight_decay", weight_decay)


def mup_groups(
    model: nn.Module,
    base: nn.Module | None = None,
    *,
    lr: float,
    weight_decay: float | None = None,
    rule: str = "adam",
) -> list[Group]:
    """Param groups whose rates follow the maximal update parametrization, so that a rate tuned on a narrow model
    fits a wide one (Yang et al. 2022, arXiv 2203.03466, table 8).

    These are the rates alone: initial weights, the factor of attention and that of the last layer are the model's
    (the mup library, or your own). A dimension is infinite where the model's size differs from the base's.

    Args:
        model: the wide one.
        base: the one that `lr` was tuned on, with the same names; it may lie on the meta device. None: as the mup
            library has it, which sets `infshape` on parameters (`mup.set_base_shapes`).
        lr: tuned on the base.
        weight_decay: tuned on the base; each is divided by the factor of its rate, since a step takes rate times
            decay off a weight (as the mup library does). None: the optimizer's, for all.
        rule: "adam" (Adam, AdamW) or "sgd".

    Returns:
        Group dicts with "params" as (name, parameter) pairs, "lr" and "name", one for each factor of the rate.

    Raises:
        ValueError: a parameter of one model is not in the other or has another number of dimensions, more than two
            of them are infinite, there are no base shapes, or it cannot be known what parameters are: of a lazy
            module, or flattened by FSDP1 (use_orig_params=False).
        TypeError: the model is no nn.Module, or a rate or decay is no number.

    Example:
        >>> def mlp(width):
        ...     return nn.Sequential(nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 2))
        >>> groups = sf.mup_groups(mlp(64), mlp(16), lr=1e-3)
        >>> [(group["lr"], len(group["params"])) for group in groups]
        [(0.00025, 1), (0.001, 5)]
    """
    if rule not in ("adam", "sgd"):
        raise ValueError(f"rule must be 'adam' or 'sgd', got {rule!r}")
    _check_numbers(lr, weight_decay)
    params = model_parameters(model)
    refuse_unknown(params)
    grown = _noted(params) if base is None else _compared(params, model_parameters(base))
    found: dict[float, list[ModelParameter]] = {}
    for one, multiples in zip(params, grown, strict=True):
        found.setdefault(_factor(one, multiples, rule), []).append(one)
    groups = []
    for factor, of in sorted(found.items()):
        settings: dict[str, Any] = {"lr": lr * factor, "name": f"lr x {factor:.4g}"}
        if weight_decay is not None:
            settings["weight_decay"] = weight_decay / factor
        groups.append(group_of(of, settings))
    return groups


def _compared(params: list[ModelParameter], base: list[ModelParameter]) -> list[list[float]]:
    """How many times larger each dimension that differs is than that of the base."""
    known = {one.names[0]: one.param for one in base}
    odd = sorted({one.names[0] for one in params} ^ known.keys())
    if odd:
        where = "model" if odd[0] in known else "base"
        raise ValueError(f"parameter {odd[0]!r} is not in the {where}")
    found = []
    for one in params:
        name, shape, narrow = one.names[0], one.param.shape, known[one.names[0]].shape
        if len(shape) != len(narrow):
            raise ValueError(
                f"parameter {name!r} has {len(shape)} dimensions, and {len(narrow)} in the base"
            )
        found.append([n / b for n, b in zip(shape, narrow, strict=True) if n != b])
    return found


def _noted(params: list[ModelParameter]) -> list[list[float]]:
    """The same as the mup library notes it, where a dimension that may differ counts even if it does not."""
    found = []
    for one in params:
        noted = getattr(one.param, "infshape", None)
        if noted is None:
            raise ValueError(
                f"parameter {one.names[0]!r} has no base shape: pass base=, or call mup.set_base_shapes before"
            )
        found.append([dim.width_mult() for dim in noted if dim.isinf()])
    return found


def _factor(one: ModelParameter, multiples: list[float], rule: str) -> float:
    if len(multiples) > 2:
        raise ValueError(
            f"parameter {one.names[0]!r}: more than two of its dimensions are infinite"
        )
    if len(multiples) == 2:
        fan_out, fan_in = multiples
        return 1.0 / fan_in if rule == "adam" else fan_out / fan_in
    if multiples and rule == "sgd":
        return multiples[0]
    return 1.0
