"""Any number of learning rates, one launch: fused two-time-scale and multi-rate optimizers for PyTorch."""

from inspect import get_annotations as _get_annotations
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import get_type_hints as _get_type_hints

from ._version import __version__

_no_torch: Exception | None = None
try:
    import torch as _torch  # noqa: F401
except (ImportError, OSError) as error:  # missing or broken: `doctor` has to run and say so
    _no_torch = error

__all__ = [
    "AlternatingStep",
    "AnnealedRatioLR",
    "AveragedModule",
    "BackendStatus",
    "BestResponse",
    "Box",
    "Curvature",
    "GradScaler",
    "L2Ball",
    "NonNegative",
    "RateSearch",
    "RatioSearch",
    "Recorder",
    "Simplex",
    "StackelbergAdam",
    "StackelbergAdamW",
    "StackelbergSGD",
    "StackelbergValue",
    "TwoTimeScaleLR",
    "__version__",
    "alternating_step",
    "backends",
    "best_response",
    "curvature",
    "decay_by_module",
    "describe",
    "find_rates",
    "find_ratio",
    "groups_by_pattern",
    "kinds",
    "layerwise_lr_decay",
    "lora_plus_groups",
    "merge_equal",
    "mup_groups",
    "scale_schedule",
    "split_body_head",
    "stackelberg_value",
    "warmup_cosine",
    "warmup_linear",
    "warmup_stable_decay",
]


def _publish(name: str) -> None:
    """Make this package the module of what it exports."""
    found = globals()[name]
    if isinstance(found, type):
        # annotations are strings, which are looked up in the module of their class
        hints = _get_type_hints(found, include_extras=True)
        own = {key: hints[key] for key in _get_annotations(found)}
        if own:
            found.__annotations__ = own
    if callable(found):
        found.__module__ = __name__


if _no_torch is None:
    from .backends import BackendStatus, backends
    from .game.alternating import AlternatingStep, alternating_step
    from .game.best_response import BestResponse, best_response
    from .game.curvature import Curvature, curvature
    from .game.find_rates import find_rates
    from .game.find_ratio import RatioSearch, find_ratio
    from .game.rate_search import RateSearch
    from .game.scale_schedule import (
        scale_schedule,
        warmup_cosine,
        warmup_linear,
        warmup_stable_decay,
    )
    from .game.schedules import AnnealedRatioLR, TwoTimeScaleLR
    from .game.stackelberg_value import StackelbergValue, stackelberg_value
    from .groups.builders import groups_by_pattern, merge_equal
    from .groups.constraints import (
        Box,
        L2Ball,
        NonNegative,
        Simplex,
    )
    from .groups.describe import describe
    from .groups.kinds import kinds
    from .groups.layers import layerwise_lr_decay
    from .groups.published import lora_plus_groups, mup_groups
    from .groups.split import split_body_head
    from .groups.weight_decay import decay_by_module
    from .optimizers.adam import StackelbergAdam, StackelbergAdamW
    from .optimizers.averaged_module import AveragedModule
    from .optimizers.grad_scaler import GradScaler
    from .optimizers.sgd import StackelbergSGD
    from .report.recorder import Recorder

    # pickles name a class by its module: those of today are to load when it has moved inside of the package
    for _name in __all__:
        _publish(_name)
elif not _TYPE_CHECKING:  # or a checker would take it that any name is there

    def __getattr__(name: str) -> object:
        if name in __all__:
            raise ImportError(
                f"stackelberg_fused.{name} needs torch, which cannot be imported: {_no_torch}"
            )
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Public names: what editors and consoles offer."""
    return sorted(__all__)
