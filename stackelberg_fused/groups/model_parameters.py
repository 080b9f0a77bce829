"""A model's parameters by the names that its author gave them: each once, with all of its names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from ..memory.flattened import is_joined
from ..memory.presence import is_uninitialized
from .detect_head import unwrapped

# what wrappers inside of a model add to the names of what they wrap: torch.compile, FSDP1, checkpoint_wrapper
_ADDED = re.compile(r"(^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")

# of a tensor that is computed from this one
_PARAMETRIZED = re.compile(r"(?:^|\.)parametrizations\.([^.]+)\.original\d*$")


def plain_name(name: str) -> str:
    """Return the name of a module or parameter without what wrappers add."""
    return _ADDED.sub("", name).lstrip(".")


def own_name(name: str) -> str:
    """Return what the module calls a parameter: the last part of its name, also where it is parametrized."""
    found = _PARAMETRIZED.search(name)
    return found[1] if found else name.rpartition(".")[2]


@dataclass(frozen=True)
class ModelParameter:
    """One parameter.

    Attributes:
        name: the first one under which the model knows it, as in `named_parameters()`.
        names: all of them, several for tied weights, without what wrappers add.
        modules: those that hold it, in the order of `names`; what is parametrized counts as that which is computed.
        param: itself.
    """

    name: str
    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    param: nn.Parameter


def model_parameters(model: nn.Module) -> list[ModelParameter]:
    """Return the parameters of a model, which may be wrapped, in the order of `named_parameters()`.

    Raises:
        TypeError: it is no nn.Module.
        ValueError: it has none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be an nn.Module, got {type(model).__name__}")
    prefix, _ = unwrapped(model)
    names: dict[int, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(param), []).append(name)
    if not names:
        raise ValueError("the model has no parameters")
    return [
        ModelParameter(
            name,
            tuple(plain_name(n.removeprefix(prefix)) for n in names[id(param)]),
            tuple(_holder(model, n) for n in names[id(param)]),
            param,
        )
        for name, param in model.named_parameters()
    ]


def _holder(model: nn.Module, name: str) -> nn.Module:
    path = name.rpartition(".")[0]
    module = model.get_submodule(path)
    if isinstance(module, ParametrizationList):
        return model.get_submodule(".".join(path.split(".")[:-2]))
    return module


def refuse_unknown(params: list[ModelParameter]) -> None:
    """Raise ValueError where groups depend on what parameters are, and that cannot be known, or not yet."""
    for one in params:
        if is_joined(one.param):
            raise ValueError(
                f"{one.names[0]!r} is several parameters that FSDP has flattened into one: pass it "
                "use_orig_params=True, or they can only be in one group"
            )
        if is_uninitialized(one.param):
            raise ValueError(
                f"the groups depend on the shape of {one.names[0]!r}, which a lazy module gives it on its first input: "
                "run the model once before"
            )
