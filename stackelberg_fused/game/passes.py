"""The passes of an alternating step: the body forward, the head at fixed features, the body backward at a new head."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..optimizers.base import StackelbergOptimizer
from ..torch_compat import pytree

# bodies whose graph was looked at, so many of an optimizer at most
MOST_KNOWN = 64
_walked: weakref.WeakKeyDictionary[StackelbergOptimizer, set[Any]] = weakref.WeakKeyDictionary()

LossFunction = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Part:
    """A microbatch after the body's forward pass."""

    features: Any  # what the body returned: tensors with a graph, in any nest
    targets: Any
    share: float  # of the batch

    def cut(self) -> tuple[Any, list[tuple[Tensor, Tensor]]]:
        """The features without their graph, and pairs of a tensor in the graph and one outside whose gradient is its.

        Copies, because a head may begin with an operation in place.
        """
        leaves, structure = pytree.tree_flatten(self.features)
        pairs = []
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                outside = leaf.detach().requires_grad_()
                pairs.append((leaf, outside))
                leaves[i] = outside.clone()
        return pytree.tree_unflatten(leaves, structure), pairs

    def detached(self) -> Any:
        return pytree.tree_map(
            lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, self.features
        )

    @property
    def needs_gradient(self) -> bool:
        leaves = pytree.tree_leaves(self.features)
        return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)


def with_last(parts: list[Any]) -> Iterator[tuple[bool, Any]]:
    return ((i == len(parts) - 1, part) for i, part in enumerate(parts))


def forward(module: Any, argument: Any, synchronized: bool) -> Any:
    """A forward pass; under DistributedDataParallel whether the backward pass that is to come reduces gradients."""
    with _no_sync(module, not synchronized):
        return module(argument)


def _no_sync(module: Any, wanted: bool) -> AbstractContextManager[Any]:
    return (
        module.no_sync()
        if wanted and isinstance(module, DistributedDataParallel)
        else nullcontext()
    )


def _loss_of(loss_fn: LossFunction, outputs: Any, part: Part) -> Tensor:
    loss = loss_fn(outputs, part.targets)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise ValueError(f"loss_fn must return a tensor of one element, got {found}")
    return loss if part.share == 1.0 else loss * part.share


def gradients_of_body(optimizer: StackelbergOptimizer) -> list[tuple[Tensor, Any, int]]:
    """The body's parameters with their gradients and how often these were written."""
    params = (p for g in optimizer.param_groups if g["role"] == "body" for p in g["params"])
    return [(p, p.grad, -1 if p.grad is None else p.grad._version) for p in params]


def refuse_shared(optimizer: StackelbergOptimizer, before: list[tuple[Tensor, Any, int]]) -> None:
    """Raise where the head's pass left a gradient in the body: part of the body's own would be lost."""
    for param, grad, version in before:
        now = param.grad
        if now is not grad or (now is not None and now._version != version):
            names = {id(p): n for g in optimizer.param_groups for n, p in _names(g)}
            raise RuntimeError(
                f"{names[id(param)]} of the body is used by the head or the loss too: take mode='alternating', which "
                "evaluates the model as a whole"
            )


def refuse_head_in_graph(optimizer: StackelbergOptimizer, body: Any, parts: list[Part]) -> None:
    """Raise where the features depend on parameters of the head, which could not move and serve the body after that.

    Looked for in the graph of a body's first pass: of a callable nothing else can be seen.
    """
    groups = [(id(g), g["role"], len(g["params"])) for g in optimizer.param_groups]
    function = getattr(body, "__func__", body)
    known = _walked.setdefault(optimizer, set())
    key = (id(getattr(body, "__self__", None)), getattr(function, "__code__", id(body)), *groups)
    if key in known:
        return
    heads = {
        id(p): name for g in optimizer.param_groups if g["role"] == "head" for name, p in _names(g)
    }
    leaves = [leaf for part in parts for leaf in pytree.tree_leaves(part.features)]
    nodes = [leaf.grad_fn for leaf in leaves if isinstance(leaf, Tensor)]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if id(variable) in heads:
            raise ValueError(
                f"{heads[id(variable)]} of the head is used by the body too: take mode='alternating', which evaluates "
                "the model as a whole"
            )
        nodes.extend(following for following, _ in node.next_functions)
    if len(known) >= MOST_KNOWN:  # as of partials that are made anew for every step
        known.clear()
    known.add(key)


def _names(group: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for i, param in enumerate(group["params"]):
        named = group.get("param_names")
        yield f"parameter {named[i]!r}" if named else f"parameter {i}", param


def _scaled(loss: Tensor, scaler: Any) -> Tensor:
    return loss if scaler is None else scaler.scale(loss)


def head_gradient(head: Any, loss_fn: LossFunction, parts: list[Part], scaler: Any) -> Tensor:
    """Add the gradient of the head at fixed features to `.grad`; returns the loss."""
    total: Any = 0.0
    for last, part in with_last(parts):
        with _no_sync(head, not last):
            loss = _loss_of(loss_fn, head(part.detached()), part)
            _scaled(loss, scaler).backward()
        total = total + loss.detach().view(())
    return total


def body_gradient(head: Any, loss_fn: LossFunction, parts: list[Part], scaler: Any) -> Tensor:
    """Add the gradient of the body at the head as it is to `.grad`; returns the loss."""
    # a wrapper that reduces gradients would wait for those of the head, of which there are none here
    bare = head.module if isinstance(head, DistributedDataParallel) else head
    total: Any = 0.0
    outputs: list[Tensor] = []
    gradients: list[Tensor] = []
    for part in parts:
        features, pairs = part.cut()
        loss = _loss_of(loss_fn, bare(features), part)
        copies = [copy for _, copy in pairs]
        found = torch.autograd.grad(_scaled(loss, scaler), copies, allow_unused=True)
        for (output, _), gradient in zip(pairs, found, strict=True):
            if gradient is not None:
                outputs.append(output)
                gradients.append(gradient)
        total = total + loss.detach().view(())
    if not outputs:
        raise RuntimeError(
            "the loss does not depend on what the body returned: the body cannot move"
        )
    # all parts at once: DistributedDataParallel reduces when a parameter's gradient is complete
    torch.autograd.backward(outputs, gradients)
    return total
