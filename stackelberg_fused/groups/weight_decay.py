"""Weight decay by what a parameter is for: by the type of the module that holds it, and not by its name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from torch import nn

from .builders import CONTENT, Group, as_groups, check_at_least_zero, members_of, parameters_of
from .detect_head import unwrapped
from .model_parameters import ModelParameter, model_parameters, plain_name, refuse_unknown
from .purpose import EMBEDDINGS, is_bias, purposes

# their scales keep what comes in at its size: shrinking them changes the function, and makes it no smoother
NORMS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)


def decay_by_module(
    model: nn.Module,
    weight_decay: float,
    groups: Iterable[Group] | None = None,
    *,
    exempt: tuple[type[nn.Module], ...] = (*NORMS, *EMBEDDINGS),
    biases: bool = False,
) -> list[Group]:
    """Give groups a weight decay, and parameters that should have none groups of their own with 0.

    Exempt are parameters of norms (those of torch, and classes whose name ends in "Norm", as most libraries have
    some of their own), and all that `kinds` calls an embedding or a vector: biases, scales, positions that are
    parameters of a model itself, Mamba's A and D. So is what a model itself exempts, or a part of it: names that its
    `no_weight_decay()` returns and parts of names of `no_weight_decay_keywords()`, as models of timm and Swin have
    them, and parameters with `_no_weight_decay` set, as those of Mamba. A tied weight is exempt only if it is so in
    each of its modules: an embedding that is the last layer's matrix too is decayed.

    Args:
        model: that the groups are of.
        weight_decay: of the others.
        groups: of its parameters, as another builder made them; None: one with all of them.
        exempt: types of modules. Without norms among them scales are decayed, without `nn.Embedding` tables are.
        biases: decay them like others.

    Returns:
        New groups: each of the given ones, split in two where it has both; a "weight_decay" of its own is kept for
        those that are decayed.

    Raises:
        ValueError: a group holds a parameter that is not the model's, or it cannot be known what parameters
            are: of a lazy module, or flattened by FSDP1 (use_orig_params=False); `weight_decay` is negative.
        TypeError: `weight_decay` is no number, `exempt` are no types, or `groups` are none.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
        >>> for group in sf.decay_by_module(model, 0.1):
        ...     print(group["weight_decay"], [name for name, _ in group["params"]])
        0.1 ['0.weight', '2.weight']
        0.0 ['0.bias', '1.weight', '1.bias', '2.bias']
    """
    check_at_least_zero("weight_decay", weight_decay)
    types = _as_types(exempt)
    every = model_parameters(model)
    refuse_unknown(every)
    known = {id(one.param): one for one in every}
    own = _Own.of(model)
    given = groups if groups is not None else [{"params": list(model.named_parameters())}]
    found = []
    for index, group in enumerate(as_groups(given)):
        parted: dict[bool, list[int]] = {False: [], True: []}
        for place, param in enumerate(parameters_of(group)):
            one = known.get(id(param))
            if one is None:
                shape = tuple(param.shape)
                raise ValueError(
                    f"param group {index} holds a parameter of shape {shape} that is not the model's"
                )
            parted[_is_exempt(one, types, biases, own)].append(place)
        if parted[False]:
            found.append({"weight_decay": weight_decay, **_part(group, parted[False])})
        if parted[True]:
            found.append({**_part(group, parted[True]), "weight_decay": 0.0})
    return found


def _as_types(exempt: Any) -> tuple[type[nn.Module], ...]:
    types = (exempt,) if isinstance(exempt, type) else exempt
    if not isinstance(types, (tuple, list)) or not all(isinstance(one, type) for one in types):
        raise TypeError(f"exempt must be types of modules in a tuple, got {exempt!r}")
    return tuple(types)


def _part(group: Group, places: list[int]) -> Group:
    """A group with some of the parameters, and their names as an optimizer's groups have them."""
    part = {**group, "params": members_of(group)}
    return {**part, **{key: [part[key][i] for i in places] for key in CONTENT if key in part}}


def _is_exempt(
    one: ModelParameter, exempt: tuple[type[nn.Module], ...], biases: bool, own: _Own
) -> bool:
    if getattr(one.param, "_no_weight_decay", False) or own.has(one):
        return True
    spared = {
        "vector": any(kind in exempt for kind in NORMS),
        "embedding": any(kind in exempt for kind in EMBEDDINGS),
        "matrix": False,
    }
    for name, module, purpose in zip(one.names, one.modules, purposes(one), strict=True):
        is_of_norm = spared["vector"] and type(module).__name__.endswith("Norm")
        of_bias = purpose == "vector" and is_bias(name)
        is_spared = not biases if of_bias else spared[purpose]
        if not (isinstance(module, exempt) or is_of_norm or is_spared):
            return False
    return True


@dataclass(frozen=True)
class _Own:
    """What a model exempts itself, or a part of it, as a backbone of timm does.

    Attributes:
        names: of parameters, or patterns of them (`fnmatch`), as timm has it.
        keywords: by the path of the part, what names in it contain, as Swin has it.
    """

    names: frozenset[str]
    keywords: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, model: nn.Module) -> _Own:
        names, keywords = set(), []
        for path, module in unwrapped(model)[1].named_modules():
            prefix = plain_name(f"{path}.") if path else ""
            names |= {f"{prefix}{plain_name(name)}" for name in _asked(module, "no_weight_decay")}
            keywords += [(prefix, word) for word in _asked(module, "no_weight_decay_keywords")]
        return cls(frozenset(names), tuple(keywords))

    def has(self, one: ModelParameter) -> bool:
        return not self.names.isdisjoint(one.names) or any(
            any(fnmatch(name, pattern) for pattern in self.names)
            or any(
                name.startswith(path) and word in name[len(path) :] for path, word in self.keywords
            )
            for name in one.names
        )


def _asked(module: nn.Module, method: str) -> Iterable[str]:
    ask = getattr(module, method, None)
    return (ask() or ()) if callable(ask) else ()
