"""Private names of torch that the package uses, each with a stand-in for a torch that lacks it.

A stand-in may be slower, but is never wrong. No other module imports a private name of torch or takes one from its
modules; a test holds that.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import profiler as torch_profiler
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

Function = TypeVar("Function", bound=Callable[..., Any])

# Stands for hooks, or a profiler, that may be there for all that we know: every step then goes through torch's own
# wrapper, which asks by itself.
UNKNOWN: Any = True

global_pre_hooks: Any = getattr(torch_optimizer, "_global_optimizer_pre_hooks", UNKNOWN)
global_post_hooks: Any = getattr(torch_optimizer, "_global_optimizer_post_hooks", UNKNOWN)

# torch rebinds `_is_profiler_enabled`, so that it has to be asked of its module
profiler: Any = (
    torch_profiler
    if hasattr(torch_profiler, "_is_profiler_enabled")
    else SimpleNamespace(_is_profiler_enabled=UNKNOWN)
)

# the wrapper itself; without it torch wraps steps in some other way, which needs no help
wrap_step: Any = getattr(Optimizer, "profile_hook_step", lambda step: step)

# the public one imports torch._dynamo at once, which takes seconds
disable_dynamo: Callable[[Function], Function] = getattr(
    torch, "_disable_dynamo", torch.compiler.disable
)


def default_store() -> Any:
    """Return what ranks of the process group leave messages in; None in a torch that keeps it elsewhere."""
    find = getattr(torch.distributed.distributed_c10d, "_get_default_store", None)
    return None if find is None else find()


def root_mesh(mesh: Any) -> Any:
    """Return the mesh that a mesh of devices is a slice of; itself if it is none, or in a torch that does not tell."""
    find = getattr(mesh, "_get_root_mesh", None)
    if find is not None:
        return find()
    known = getattr(torch.distributed.device_mesh, "_mesh_resources", None)
    find = getattr(known, "get_root_mesh", None)
    return mesh if find is None else find(mesh)


class Pytree:
    """Stands in for the used part of `torch.utils._pytree`, for the containers of the standard library alone.

    Raises:
        TypeError: a container is of another class, which torch would perhaps know how to take apart.
    """

    @classmethod
    def tree_flatten(cls, tree: Any) -> tuple[list[Any], Any]:
        children, rebuild = _opened(tree)
        if rebuild is None:
            return [tree], None
        flat = [cls.tree_flatten(child) for child in children]
        structure = rebuild, [(len(leaves), inner) for leaves, inner in flat]
        return [leaf for leaves, _ in flat for leaf in leaves], structure

    @classmethod
    def tree_unflatten(cls, leaves: Any, structure: Any) -> Any:
        leaves = list(leaves)
        if structure is None:
            return leaves[0]
        rebuild, parts = structure
        children, start = [], 0
        for count, inner in parts:
            children.append(cls.tree_unflatten(leaves[start : start + count], inner))
            start += count
        return rebuild(children)

    @classmethod
    def tree_leaves(cls, tree: Any) -> list[Any]:
        return cls.tree_flatten(tree)[0]

    @classmethod
    def tree_map(cls, function: Callable[[Any], Any], tree: Any) -> Any:
        leaves, structure = cls.tree_flatten(tree)
        return cls.tree_unflatten(map(function, leaves), structure)


def _opened(tree: Any) -> tuple[list[Any], Callable[[list[Any]], Any] | None]:
    """Return what a container holds and what makes one like it of other contents, None for a leaf."""
    kind = type(tree)
    if kind in (dict, OrderedDict):
        keys = list(tree)
        return list(tree.values()), lambda children: kind(zip(keys, children, strict=True))
    if kind in (list, tuple, torch.Size):
        return list(tree), kind
    if kind is deque:
        longest = tree.maxlen
        return list(tree), lambda children: deque(children, longest)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return list(tree), lambda children: kind(*children)
    if isinstance(tree, (dict, list, tuple, deque)):
        raise TypeError(
            f"torch.utils._pytree is missing, and {kind.__name__} is no plain container"
        )
    return [], None


pytree: Any = Pytree
try:
    from torch.utils import _pytree as torch_pytree
except ImportError:
    pass
else:
    pytree = torch_pytree


def implementation_of(tensor: Tensor) -> int:
    """Return the address of a tensor's `c10::TensorImpl`.

    Raises:
        AttributeError: this torch does not tell; its tensors are not to be read natively then.
    """
    return tensor._cdata


def disabled_dispatch() -> Any:
    """Return the `__torch_dispatch__` of a type that has none of its own.

    Raises:
        AttributeError: this torch has no such thing; its tensors are not to be read natively then.
    """
    return Tensor.__torch_dispatch__


def scaler_record(scaler: Any, optimizer: Any) -> dict[str, Any] | None:
    """Return what a gradient scaler knows of an optimizer since its last update, to be written to.

    `stage`: an `OptState`; `found_inf_per_device`: by device, what was found of infinities. None where this torch keeps
    that elsewhere, or the scaler's scale: then the scaler has to go its own way.

    Raises:
        AssertionError: of torch's, as nothing was scaled yet.
    """
    states, check = (
        getattr(scaler, name, None)
        for name in ("_per_optimizer_states", "_check_scale_growth_tracker")
    )
    if states is None or check is None or not hasattr(scaler, "_scale"):
        return None
    check("step")
    record: dict[str, Any] = states[id(optimizer)]
    return record if record.keys() >= {"stage", "found_inf_per_device"} else None


def refuse_unreduced_scaler() -> None:
    """Raise RuntimeError where this torch's scaler cannot be told what other ranks have found."""
    if not hasattr(torch.amp.GradScaler, "_unscale_grads_"):
        raise RuntimeError(
            f"GradScaler: process_group is not known to the scaler of torch {torch.__version__}; use "
            "torch.distributed.fsdp.sharded_grad_scaler.ShardedGradScaler"
        )


def scale_of(scaler: Any) -> Tensor:
    """Return a gradient scaler's scale, float32 []; where there is a `scaler_record`."""
    return cast("Tensor", scaler._scale)


def version_of(tensor: Tensor) -> int:
    """Return how often autograd was told that a tensor was written to.

    Raises:
        AttributeError: this torch does not tell.
    """
    return tensor._version


def at_end_of_backward(call: Callable[[], None]) -> bool:
    """Have autograd make a call once the backward pass that runs is over; returns whether it will.

    Called from a hook of that backward pass. It will not where this torch does not know how.
    """
    engine = getattr(torch.autograd.Variable, "_execution_engine", None)
    queue = getattr(engine, "queue_callback", None)
    if queue is None:
        return False
    queue(call)
    return True


def shape_and_offsets(dtensor: Any) -> tuple[Any, Any] | None:
    """Return the shape of a DTensor's local part and the index of its first element; None where torch does not say."""
    try:
        utils = importlib.import_module("torch.distributed.tensor._utils")
    except ImportError:
        return None
    function = getattr(utils, "compute_local_shape_and_global_offset", None)
    if function is None:
        return None
    return cast("tuple[Any, Any]", function(dtensor.shape, dtensor.device_mesh, dtensor.placements))
