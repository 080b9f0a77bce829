"""What the host asks of a GPU around its kernels: streams, events, pinned memory, copies that it does not wait for.

Every name is torch's, or one call of it. Code that steps parameters takes them as attributes of this module, and from
nowhere else, so that tests can put a runtime in their place that records what comes after what.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.cuda import Event, Stream, current_stream
from torch.cuda import device as on_device
from torch.cuda import is_current_stream_capturing as is_capturing
from torch.cuda import stream as on_stream

__all__ = [
    "Event",
    "Stream",
    "copy_from_pinned",
    "current_stream",
    "is_capturing",
    "keep_for",
    "on_device",
    "on_stream",
    "pinned_block",
    "uploaded",
]


def pinned_block(nbytes: int) -> tuple[Tensor, np.ndarray]:
    """Memory from which a GPU copies while the host goes on (page-locked): a uint8 tensor, and an array to fill it."""
    block = torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)
    return block, block.numpy()


def copy_from_pinned(destination: Tensor, pinned: Tensor) -> None:
    """Have the current stream copy a pinned block, which must stay as it is until then, into memory of the device."""
    destination.copy_(pinned, non_blocking=True)


def uploaded(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on a device; the current stream copies it, and the host goes on meanwhile.

    torch hands out the pinned memory again when the copy is over.

    Raises:
        RuntimeError: a CUDA graph is captured, whose replays would go on reading it.
    """
    source = torch.from_numpy(np.ascontiguousarray(array))
    if device.type != "cuda":
        return source.to(device, copy=True)
    if is_capturing():
        raise RuntimeError(
            "step() is being captured in a CUDA graph, but some of what it reads is not on the device yet: take a step "
            "of the same parameters before"
        )
    pinned, view = pinned_block(array.nbytes)
    view[:] = source.numpy().reshape(-1).view(np.uint8)
    copy = torch.empty(source.shape, dtype=source.dtype, device=device)
    copy_from_pinned(copy.view(-1).view(torch.uint8), pinned)
    return copy


def keep_for(tensor: Tensor, stream: Stream) -> None:
    """Have memory that is freed be given to nobody else before a stream is through with what it has to do by then."""
    tensor.record_stream(stream)
