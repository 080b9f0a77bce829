"""Two processes, one after the other, step one optimizer whose state is in shared memory; run as a script."""

from __future__ import annotations

from typing import Any

import torch
import torch.multiprocessing as mp
from torch import nn

import stackelberg_fused as sf


class SharedAdam(sf.StackelbergAdam):
    """As asynchronous actor-critic trainers write it."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        for group in self.param_groups:
            for p in group["params"]:
                entry = self.state[p]
                entry["step"] = torch.zeros(())
                entry["exp_avg"], entry["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                for value in entry.values():
                    value.share_memory_()


def act(optimizer: Any) -> None:
    torch.set_num_threads(1)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    for _ in range(3):
        optimizer.step()


def main() -> None:
    params = [nn.Parameter(torch.full((5,), float(i))) for i in range(2)]
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    optimizer = SharedAdam(params, lr=0.1, flatten=False)
    for p in params:
        p.data.share_memory_()
    for _ in range(2):
        child = mp.get_context("spawn").Process(target=act, args=(optimizer,))
        child.start()
        child.join()
        assert child.exitcode == 0
    act(optimizer)
    torchs = torch.optim.Adam(twins, lr=0.1)
    for _ in range(3):
        act(torchs)
    for p, q in zip(params, twins, strict=True):
        assert float(optimizer.state[p]["step"]) == 9, optimizer.state[p]["step"]
        assert optimizer.state[p]["step"].is_shared()
        torch.testing.assert_close(p, q)


if __name__ == "__main__":
    main()
    print("checked")
