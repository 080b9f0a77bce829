"""The tables on a GPU: uploaded when they change, asynchronously, never with a sync."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from torch import Tensor


class PinnedRing:
    """Pinned blocks for host-to-device copies: one is used again only after its copy is known to be over.

    Where every block is still in flight a new one is allocated, so uploading never waits.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._blocks: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def upload(self, source: np.ndarray, destination: Tensor) -> None:
        """Copy the bytes of `source` into the uint8 tensor `destination` on the current stream."""
        block = self._take(source.nbytes)
        block[: source.nbytes].numpy()[:] = source.reshape(-1).view(np.uint8)
        destination.copy_(block[: source.nbytes], non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        self._blocks.append((block, event))

    def _take(self, nbytes: int) -> Tensor:
        for _ in range(len(self._blocks)):
            block, event = self._blocks.popleft()
            if block.numel() >= nbytes and event.query():
                return block
            self._blocks.append((block, event))
        return torch.empty(max(4096, 1 << (nbytes - 1).bit_length()), dtype=torch.uint8, device="cpu", pin_memory=True)


class Mirror:
    """Records, tiles and rows of one table on its device. On the CPU (interpreted Triton) it aliases the host's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ring = PinnedRing(device) if device.type == "cuda" else None
        self._versions: dict[str, object] = {}
        self._copies: dict[str, Tensor] = {}

    def get(self, name: str, source: np.ndarray, version: object) -> Tensor:
        """The bytes of a host table on the device, uploaded if `version` differs from the last one seen."""
        if self._ring is None:
            return torch.from_numpy(source.reshape(-1).view(np.uint8))
        copy = self._copies.get(name)
        if copy is None or copy.numel() != source.nbytes:
            copy = self._copies[name] = torch.empty(source.nbytes, dtype=torch.uint8, device=self._device)
            self._versions.pop(name, None)
        if version is None or self._versions.get(name) != version:
            self._ring.upload(source, copy)
            self._versions[name] = version
        return copy


def mirror_of(table) -> Mirror:
    if table.mirror is None:
        table.mirror = Mirror(table.device)
    return table.mirror
