"""A model's parameters by the names that its author gave them: each once, with all of its names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from .detect_head import unwrapped

# what wrappers inside of a model add to the names of what they wrap: torch.compile, FSDP1, checkpoint_wrapper
_ADDED = re.compile(r"(^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")


def plain_name(name: str) -> str:
    """Return the name of a module or parameter without what wrappers add."""
    return _ADDED.sub("", name).lstrip(".")


@dataclass(frozen=True)
class ModelParameter:
    """One parameter.

    Attributes:
        name: the first one under which the model knows it, as in `named_parameters()`.
        names: all of them, several for tied weights, without what wrappers add.
        modules: those that hold it, in the order of `names`.
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
            tuple(model.get_submodule(n.rpartition(".")[0]) for n in names[id(param)]),
            param,
        )
        for name, param in model.named_parameters()
    ]
