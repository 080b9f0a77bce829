"""State dicts whose parameters lie in other groups, loaded by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    places = {
        name: (group, key)
        for group in saved
        for name, key in zip(group["param_names"], group["params"], strict=True)
    }
    names = [name for group in groups for name in group["param_names"]]
    if len(set(names)) != len(names) or len(names) != sum(len(g["params"]) for g in saved):
        return loaded
    if places.keys() != set(names):
        return loaded
    return {**loaded, "param_groups": [_of(g, i, saved, places) for i, g in enumerate(groups)]}


def _of(
    group: dict[str, Any], index: int, saved: Groups, places: dict[str, tuple[dict[str, Any], Any]]
) -> dict[str, Any]:
    """A group of a state dict with the parameters of one of the optimizer's, in its order."""
    names = group["param_names"]
    sources = list({id(places[name][0]): places[name][0] for name in names}.values()) or [saved[0]]
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
    return {**settings, "params": [places[name][1] for name in names], "param_names": list(names)}


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {n: value for n, value in group.items() if n not in ("params", "param_names", "role")}
