"""Step counts on the device, where the host must not know whether a step was taken: capture and gradient scalers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class DeviceCounts:
    """What a kernel reads and advances instead of rows that the host completes.

    Args:
        steps: float32 [n]: steps that each slot has taken.
        ready: bool array [n]: False where the coming step creates the momentum buffer.
        device: of the table.

    Attributes:
        steps, ready: float32 and int32 [n], on the device.
        arrived: int32 [n]: blocks of the launch in progress that have read the count; 0 between launches.
    """

    def __init__(self, steps: Tensor, ready: np.ndarray, device: torch.device) -> None:
        self.steps = steps.to(device, copy=True)
        self.ready = torch.from_numpy(ready.astype(np.int32)).to(device)
        self.arrived = torch.zeros_like(self.ready)
