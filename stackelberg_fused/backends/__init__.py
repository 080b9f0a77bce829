"""The choice of a backend, made whenever the engine is built; nothing falls back silently."""

from __future__ import annotations

from ..layout.slot import Kind
from ..warning import warn_caller
from .base import Backend, BackendStatus, Launch
from .cpu import CpuBackend
from .cuda import CudaBackend
from .reference import ReferenceBackend
from .triton import TritonBackend

__all__ = ["Backend", "BackendStatus", "Launch", "backends", "can_update", "resolve_backend"]

BACKENDS: dict[str, type[Backend]] = {
    cls.name: cls for cls in (ReferenceBackend, CpuBackend, TritonBackend, CudaBackend)
}
PREFERENCE = {"cuda": ("cuda", "triton"), "cpu": ("cpu",)}


def backends() -> list[BackendStatus]:
    """Return every backend, whether it can run on this machine, and if not why and what to do.

    Example:
        >>> {status.name: status.available for status in sf.backends()}["reference"]
        True
    """
    return [cls.status() for cls in BACKENDS.values()]


def can_update(choice: str | Backend, kind: Kind) -> bool:
    """Tell whether a backend, by name or "auto", knows parameters of a kind; one that is not here knows none."""
    if isinstance(choice, str) and choice in BACKENDS:
        if not BACKENDS[choice].status().available:
            return False
        choice = BACKENDS[choice]()
    return choice == "auto" or (isinstance(choice, Backend) and not choice.refusal(kind))


def resolve_backend(
    requested: str | Backend,
    kind: Kind,
    label: str,
    warned: set[Kind],
) -> Backend:
    """Return the backend for parameters of one kind.

    Args:
        requested: "auto" (cuda, then triton, on a GPU; cpu on the host; reference, with a warning, for what these
            cannot update), a backend's name, or a backend.
        label: how errors call a parameter of this kind.
        warned: kinds of which the warning was given; this one is added.

    Raises:
        ValueError: the name is unknown, or an explicit choice cannot update such parameters.
        RuntimeError: an explicit choice cannot run on this machine.
    """
    if requested == "auto":
        reasons = []
        for name in PREFERENCE.get(kind.device.type, ()):
            status = BACKENDS[name].status()
            if not status.available:
                reasons.append(f"{name} is not available: {status.reason}")
                continue
            backend = BACKENDS[name]()
            refusal = backend.refusal(kind)
            if not refusal:
                return backend
            reasons.append(refusal)
        if kind not in warned:
            warned.add(kind)
            warn_caller(
                f"{label}, and others of {kind.dtype} on {kind.device.type}: stepped by the reference backend, which "
                f"is slower than torch's fused kernels ({'; '.join(reasons) or 'no kernel for this device'}); "
                "where that is meant, pass backend='reference'"
            )
        return ReferenceBackend()
    known = ", ".join(map(repr, ["auto", *BACKENDS]))
    if isinstance(requested, str):
        if requested not in BACKENDS:
            raise ValueError(f"unknown backend {requested!r}, expected {known}")
        status = BACKENDS[requested].status()
        if not status.available:
            raise RuntimeError(f"backend {requested!r} is not available: {status.reason}")
        requested = BACKENDS[requested]()
    if not isinstance(requested, Backend):
        raise TypeError(f"backend must be a name, one of {known}, or a backend, got {requested!r}")
    refusal = requested.refusal(kind)
    if refusal:
        raise ValueError(f"{label}: {refusal}; backend='reference' does")
    return requested
