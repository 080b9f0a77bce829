"""Any number of learning rates, one launch: fused two-time-scale and multi-rate optimizers for PyTorch."""

from ._version import __version__
from .adam import StackelbergAdam, StackelbergAdamW
from .backends import BackendStatus, backends
from .partition import split_body_head
from .sgd import StackelbergSGD

__all__ = [
    "BackendStatus",
    "StackelbergAdam",
    "StackelbergAdamW",
    "StackelbergSGD",
    "__version__",
    "backends",
    "split_body_head",
]
