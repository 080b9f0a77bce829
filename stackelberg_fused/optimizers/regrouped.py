"""State dicts whose parameters lie in other groups, loaded by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..groups.param_groups import group_label

Groups = Sequence[dict[str, Any]]


def regrouped(loaded: dict[str, Any], groups: Groups) -> dict[str, Any]:
    """A state dict with its parameters in an optimizer's groups, if names say that it has the same ones in others.

    torch saves the names of named parameters, and loads by position. So it refuses a checkpoint of
    `AdamW(model.named_parameters())`, which has one group, where the optimizer has those of `split_body_head(model)`.

    Args:
        loaded: as `torch.optim.Optimizer.state_dict`.
        groups: of the optimizer that loads it.

    Returns:
        The state dict itself where groups are alike, names are missing, or other parameters are in it. Else one with
        the optimizer's groups. Each has the settings of the group that its parameters come from, its rate among them,
        but the role that it has in the optimizer.

    Raises:
        ValueError: names the group whose parameters come from groups with different settings.
    """
    saved = loaded.get("param_groups", ())
    if not all("param_names" in group for group in (*saved, *groups)):
        return loaded
    if [group["param_names"] for group in saved] == [group["param_names"] for group in groups]:
        return loaded
    old, new = _unwrapped_names(saved), _unwrapped_names(groups)
    if sorted(old) != sorted(new) or len(set(old)) != len(old):
        return loaded
    keys = [(group, key) for group in saved for key in group["params"]]
    place_of = dict(zip(old, keys, strict=True))
    places = iter([place_of[name] for name in new])
    return {
        **loaded,
        "param_groups": [
            _of(group, index, [next(places) for _ in group["params"]], saved[0])
            for index, group in enumerate(groups)
        ],
    }


def _unwrapped_names(groups: Groups) -> list[str]:
    """The names of all parameters, in order, without what all begin with: a wrapper's, as "module." of DDP."""
    paths = [name.split(".") for group in groups for name in group["param_names"]]
    depth = 0
    while all(len(p) > depth + 1 for p in paths) and len({p[depth] for p in paths}) == 1:
        depth += 1
    return [".".join(path[depth:]) for path in paths]


def _of(
    group: dict[str, Any],
    index: int,
    places: list[tuple[dict[str, Any], Any]],
    default: dict[str, Any],
) -> dict[str, Any]:
    """A group of a state dict with the parameters of one of the optimizer's, in its order.

    Args:
        group, index: the optimizer's.
        places: for each parameter its group in the state dict, and its key there.
        default: the group whose settings one without parameters gets.
    """
    sources = list({id(source): source for source, _ in places}.values()) or [default]
    settings = _settings(sources[0])
    for source in sources[1:]:
        differing = [
            name for name, value in _settings(source).items() if value != settings.get(name)
        ]
        if differing:
            raise ValueError(
                f"{group_label(index, group)}: its parameters lie in several groups of the loaded state dict, which "
                f"differ in {differing[0]!r}; split the groups as they were when it was saved"
            )
    params = [key for _, key in places]
    return {**settings, "params": params, "param_names": list(group["param_names"])}


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    kept = {n: value for n, value in group.items() if n not in ("params", "param_names", "role")}
    # schedulers fill a rate in place: that of one group must not be another's
    return {n: v.clone() if isinstance(v, Tensor) else v for n, v in kept.items()}
