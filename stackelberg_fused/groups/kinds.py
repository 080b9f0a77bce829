"""Param groups by the kind of a parameter: embedding, matrix, vector, head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from .builders import Group, Settings, check_settings, group_of
from .layers import Heads, head_names, is_in_head
from .model_parameters import ModelParameter, model_parameters, refuse_unknown
from .purpose import purposes

KINDS = ("embedding", "matrix", "vector", "head")


def kinds(
    model: nn.Module, settings: Mapping[str, Settings] | None = None, *, head: Heads = None
) -> list[Group]:
    """Param groups by kind: tables of embeddings (also positions, tokens and relative biases that are parameters of a
    model itself), matrices (two and more dimensions), vectors (biases, scales of norms and layers, Mamba's A and D),
    and the last layers. `decay_by_module` judges by the same (stackelberg_fused/groups/purpose.py).

    Args:
        model: each of its parameters is in one group. It may be wrapped.
        settings: of a group by its kind, as `{"embedding": {"lr": 0.3}}`.
        head: the last layers by name; None: detected where there are any.

    Returns:
        Group dicts in the order of KINDS, without empty ones, with "params" as (name, parameter) pairs and "name" (the
        kind). An embedding that is tied to the head is an embedding. None has a role: that a head is fast by itself is
        not what rates by kind mean; give it `{"head": {"role": "head"}}` where it is.

    Raises:
        ValueError: settings for a kind that there is none of in the model, `head` is no name in it, or it cannot be
            known what parameters are: of a lazy module, or flattened by FSDP1 (use_orig_params=False).
        TypeError: settings are no dict, or hold "params"; or `head` is no name.

    Example:
        >>> parts = {"embed": nn.Embedding(10, 8), "norm": nn.LayerNorm(8), "lm_head": nn.Linear(8, 10)}
        >>> groups = sf.kinds(nn.ModuleDict(parts), {"embedding": {"lr": 0.3}})
        >>> [(group["name"], group.get("lr")) for group in groups]
        [('embedding', 0.3), ('vector', None), ('head', None)]
    """
    params = model_parameters(model)
    refuse_unknown(params)
    heads = head_names(model, head)
    found: dict[str, list[ModelParameter]] = {kind: [] for kind in KINDS}
    for one in params:
        found[_kind_of(one, heads)].append(one)
    settings = settings or {}
    for kind, of_kind in settings.items():
        check_settings(f"kind {kind!r}", of_kind)
        if kind not in found:
            raise ValueError(
                f"unknown kind {kind!r}, expected one of {', '.join(map(repr, KINDS))}"
            )
        if not found[kind]:
            tied = "; a head that is tied to an embedding is an embedding" if kind == "head" else ""
            raise ValueError(f"the model has no parameter of the kind {kind!r}{tied}")
    return [
        group_of(of, {"name": kind, **settings.get(kind, {})}) for kind, of in found.items() if of
    ]


def _kind_of(one: ModelParameter, heads: Iterable[str]) -> str:
    if is_in_head(one, heads):
        return "head"
    found = purposes(one)
    return "embedding" if "embedding" in found else found[0]
