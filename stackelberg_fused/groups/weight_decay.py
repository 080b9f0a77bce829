"""Weight decay by what a parameter is for: by the type of the module that holds it, and not by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from .builders import CONTENT, Group, members_of, parameters_of
from .detect_head import unwrapped
from .model_parameters import ModelParameter, model_parameters, own_name, plain_name, refuse_unknown
from .split import is_no_decay

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
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_NORM = re.compile(r"Norm(?![a-z])")  # RMSNormGated, Norm2d, but no NormalPolicy


def decay_by_module(
    model: nn.Module,
    weight_decay: float,
    groups: Iterable[Group] | None = None,
    *,
    exempt: tuple[type[nn.Module], ...] = (*NORMS, *_EMBEDDINGS),
    biases: bool = False,
) -> list[Group]:
    """Give groups a weight decay, and parameters that should have none groups of their own with 0.

    Exempt are parameters of norms (those of torch, and classes whose name ends in "Norm", as most libraries have
    some of their own; the vectors of "RMSNormGated" and the like), of embeddings, and biases; also what a model itself
    exempts, or a part of it: names that its `no_weight_decay()` returns, as timm's models have it, and parameters with
    `_no_weight_decay` set, as those of Mamba. A tied weight is exempt only if it is so in each of its modules: an
    embedding that is the last layer's matrix too is decayed.

    Args:
        model: that the groups are of.
        weight_decay: of the others.
        groups: of its parameters, as another builder made them; None: one with all of them.
        exempt: types of modules.
        biases: decay them like others.

    Returns:
        New groups: each of the given ones, split in two where it has both; a "weight_decay" of its own is kept for
        those that are decayed.

    Raises:
        ValueError: a group holds a parameter that is not the model's, or it cannot be known what parameters
            are: of a lazy module, or flattened by FSDP1 (use_orig_params=False).

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
        >>> for group in sf.decay_by_module(model, 0.1):
        ...     print(group["weight_decay"], [name for name, _ in group["params"]])
        0.1 ['0.weight', '2.weight']
        0.0 ['0.bias', '1.weight', '1.bias', '2.bias']
    """
    every = model_parameters(model)
    refuse_unknown(every)
    known = {id(one.param): one for one in every}
    own = _named_by_model(model)
    given = groups if groups is not None else [{"params": list(model.named_parameters())}]
    found = []
    for index, group in enumerate(given):
        parted: dict[bool, list[int]] = {False: [], True: []}
        for place, param in enumerate(parameters_of(group)):
            one = known.get(id(param))
            if one is None:
                shape = tuple(param.shape)
                raise ValueError(
                    f"param group {index} holds a parameter of shape {shape} that is not the model's"
                )
            parted[_is_exempt(one, exempt, biases, own)].append(place)
        if parted[False]:
            found.append({"weight_decay": weight_decay, **_part(group, parted[False])})
        if parted[True]:
            found.append({**_part(group, parted[True]), "weight_decay": 0.0})
    return found


def _part(group: Group, places: list[int]) -> Group:
    """A group with some of the parameters, and their names as an optimizer's groups have them."""
    part = {**group, "params": members_of(group)}
    return {**part, **{key: [part[key][i] for i in places] for key in CONTENT if key in part}}


def _is_exempt(
    one: ModelParameter, exempt: tuple[type[nn.Module], ...], biases: bool, own: set[str]
) -> bool:
    if getattr(one.param, "_no_weight_decay", False) or not own.isdisjoint(one.names):
        return True
    exempts_norms = any(kind in exempt for kind in NORMS)
    for name, module in zip(one.names, one.modules, strict=True):
        kind, is_vector = type(module).__name__, is_no_decay(one.param)
        is_norm = kind.endswith("Norm") or (is_vector and _NORM.search(kind) is not None)
        is_of_norm = exempts_norms and is_norm
        last = own_name(name)
        # in_proj_bias, bias_ih_l0; but no table of biases
        is_bias = is_vector and (last.startswith("bias") or last.endswith("bias"))
        if not (isinstance(module, exempt) or is_of_norm or (is_bias and not biases)):
            return False
    return True


def _named_by_model(model: nn.Module) -> set[str]:
    """Names that the model exempts, or a part of it, as a backbone of timm does."""
    found = set()
    for path, module in unwrapped(model)[1].named_modules():
        ask = getattr(module, "no_weight_decay", None)
        names = ask() if callable(ask) else ()
        found |= {plain_name(f"{path}.{name}" if path else name) for name in names}
    return found
