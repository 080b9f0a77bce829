"""Which backend runs: chosen when the optimizer is built, or built again; nothing falls back silently."""

from __future__ import annotations

import torch

from ..warning import warn_caller
from .base import Backend, BackendStatus, Work
from .cpu import CpuBackend
from .cuda import CudaBackend
from .reference import ReferenceBackend
from .triton import TritonBackend

__all__ = ["Backend", "BackendStatus", "Work", "backends", "resolve_backend"]

BACKENDS: dict[str, type[Backend]] = {
    cls.name: cls for cls in (ReferenceBackend, CpuBackend, TritonBackend, CudaBackend)
}
PREFERENCE = {"cuda": ("cuda", "triton"), "cpu": ("cpu",)}


def backends() -> list[BackendStatus]:
    """Every backend, whether it can run on this machine, and if not why and what to do."""
    return [cls.status() for cls in BACKENDS.values()]


def resolve_backend(
    choice: str | Backend,
    device: torch.device,
    dtype: torch.dtype,
    label: str,
    warned: set[tuple[torch.device, torch.dtype]],
) -> Backend:
    """The backend for parameters of one device and dtype.

    Args:
        choice: "auto" (cuda, then triton, on a GPU; cpu on the host; reference, with a warning, for what these cannot
            update), a backend's name, or a backend.
        label: how errors call a parameter of this device and dtype.
        warned: devices and dtypes of which the warning was given; this one is added.

    Raises:
        ValueError: the name is unknown, or an explicit choice cannot update such parameters.
        RuntimeError: an explicit choice cannot run on this machine.
    """
    if choice == "auto":
        reasons = []
        for name in PREFERENCE.get(device.type, ()):
            status = BACKENDS[name].status()
            if not status.available:
                reasons.append(f"{name} is not available: {status.reason}")
                continue
            backend = BACKENDS[name]()
            refusal = backend.refusal(device, dtype)
            if not refusal:
                return backend
            reasons.append(refusal)
        if (device, dtype) not in warned:
            warned.add((device, dtype))
            warn_caller(
                f"{label}, and others of {dtype} on {device.type}: stepped by the reference backend, which is slower "
                f"than torch's fused kernels ({'; '.join(reasons) or 'no kernel for this device'}); "
                "where that is meant, pass backend='reference'"
            )
        return ReferenceBackend()
    if isinstance(choice, str):
        if choice not in BACKENDS:
            known = ", ".join(map(repr, ["auto", *BACKENDS]))
            raise ValueError(f"unknown backend {choice!r}, expected {known}")
        status = BACKENDS[choice].status()
        if not status.available:
            raise RuntimeError(f"backend {choice!r} is not available: {status.reason}")
        choice = BACKENDS[choice]()
    refusal = choice.refusal(device, dtype)
    if refusal:
        raise ValueError(f"{label}: {refusal}; backend='reference' does")
    return choice
