"""Takes steps on a torch that lacks private names: one process imports torch, and forks another for each name.

Prints one JSON object: by name an error, or "" where all went well.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import types
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


def without(module: Any, name: str) -> types.ModuleType:
    """Return a stand-in for a module whose own functions still find a global that others do not."""
    stub = types.ModuleType(module.__name__)
    stub.__dict__.update({k: v for k, v in vars(module).items() if k != name})
    assert hasattr(module, name)
    assert not hasattr(stub, name)
    return stub


def hooks_of_optimizers(name: str) -> None:
    module = sys.modules["torch.optim.optimizer"]
    sys.modules["torch.optim.optimizer"] = without(module, name)


def hooks_of_an_optimizer() -> None:
    """Kept under other names, and called by another wrapper."""
    construct, old = Optimizer.__init__, ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")

    def init(self: Any, *args: Any) -> None:
        construct(self, *args)
        self.renamed = [self.__dict__.pop(name) for name in old]

    def wrap(step: Any) -> Any:
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            for hook in self.renamed[0].values():
                hook(self, args, kwargs)
            return step(self, *args, **kwargs)

        return wrapper

    def register(self: Any, hook: Any) -> None:
        self.renamed[0][len(self.renamed[0])] = hook

    Optimizer.__init__, Optimizer.profile_hook_step = init, staticmethod(wrap)
    Optimizer.register_step_pre_hook = register


def hidden(tensor: Any) -> Any:
    raise AttributeError("this torch does not tell")


def pytrees() -> None:
    delattr(torch.utils, "_pytree")
    sys.modules["torch.utils._pytree"] = None


REMOVALS = {
    "_global_optimizer_pre_hooks": lambda: hooks_of_optimizers("_global_optimizer_pre_hooks"),
    "_global_optimizer_post_hooks": lambda: hooks_of_optimizers("_global_optimizer_post_hooks"),
    "_optimizer_step_pre_hooks": hooks_of_an_optimizer,
    "_is_profiler_enabled": lambda: delattr(torch.autograd.profiler, "_is_profiler_enabled"),
    "profile_hook_step": lambda: delattr(Optimizer, "profile_hook_step"),
    "_disable_dynamo": lambda: delattr(torch, "_disable_dynamo"),
    "_pytree": pytrees,
    "_cdata": lambda: setattr(torch.Tensor, "_cdata", property(hidden)),
    "__torch_dispatch__": lambda: delattr(torch.Tensor, "__torch_dispatch__"),
    "_version": lambda: setattr(torch.Tensor, "_version", property(hidden)),
}
READ_BY_PYTHON = ("_cdata", "__torch_dispatch__", "_version")
WITHOUT_HOOKS = ("profile_hook_step",)  # whatever calls them then, it is torch


def steps_seen(sf: Any, backend: str) -> list[str]:
    """Return what hooks saw of two steps, which do what they should."""
    param = torch.nn.Parameter(torch.zeros(3))
    optimizer = sf.StackelbergSGD([param], lr=1.0, backend=backend)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("own"))
    handle = register_optimizer_step_post_hook(lambda *_: seen.append("everybody's"))
    for _ in range(2):
        param.grad = torch.ones(3)
        optimizer.step(zero_grad=True)
    handle.remove()
    optimizer.load_state_dict(optimizer.state_dict())
    assert param.tolist() == [-2.0] * 3, param
    return seen


def alternate(sf: Any) -> None:
    """Take an alternating step over containers, which are taken apart and put together again."""
    body, head = torch.nn.Linear(3, 3), torch.nn.Linear(3, 1)
    groups = [{"params": [*body.parameters()]}, {"params": [*head.parameters()], "role": "head"}]
    before = [p.clone() for group in groups for p in group["params"]]
    sf.alternating_step(
        lambda batch: {"features": [body(batch["x"][0])], "kept": batch["x"][1]},
        lambda found: head(found["features"][0]),
        torch.nn.functional.mse_loss,
        sf.StackelbergSGD(groups, lr=0.1),
        {"x": (torch.ones(4, 3), "kept")},
        torch.ones(4, 1),
        microbatches=2,
    )
    after = [p for group in groups for p in group["params"]]
    assert not any(torch.equal(p, q) for p, q in zip(before, after, strict=True))


def take_steps(name: str) -> None:
    REMOVALS[name]()
    import stackelberg_fused as sf
    from stackelberg_fused.native import tensor_abi

    tensor_abi.is_tested = lambda version: True
    backends = [b.name for b in sf.backends() if b.available and b.name in ("cpu", "reference")]
    for backend in backends:
        seen = steps_seen(sf, backend)
        if name == "_optimizer_step_pre_hooks":
            assert seen == ["own"] * 2, seen
        elif name not in WITHOUT_HOOKS:
            assert seen == ["own", "everybody's"] * 2, seen
    if name == "_pytree":
        alternate(sf)
    if name in READ_BY_PYTHON:
        assert tensor_abi.tensor_abi() is None


def tried(name: str) -> str:
    reads, writes = os.pipe()
    if not os.fork():
        os.close(reads)
        said = ""
        try:
            take_steps(name)
        except BaseException:
            said = traceback.format_exc()
        os.write(writes, said.encode()[-50_000:])
        os._exit(0)
    os.close(writes)
    with open(reads) as pipe:
        said = pipe.read()
    status = os.wait()[1]
    return said or (f"ended with {status}" if status else "")


if __name__ == "__main__":
    import torch._dynamo  # which would be imported later, and itself needs what is taken away

    print(json.dumps({name: tried(name) for name in REMOVALS}))
