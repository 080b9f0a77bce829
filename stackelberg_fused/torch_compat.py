"""Private names of torch that the package uses, each with a stand-in for a torch that lacks it.

A stand-in may be slower, but is never wrong. No other module imports a private name of torch or takes one from its
modules; a test holds that.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler as torch_profiler
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

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
disable_dynamo: Any = getattr(torch, "_disable_dynamo", torch.compiler.disable)


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


def version_of(tensor: Tensor) -> int:
    """Return how often autograd was told that a tensor was written to.

    Raises:
        AttributeError: this torch does not tell.
    """
    return tensor._version
