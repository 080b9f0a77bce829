"""The passes of an alternating step: body forward, head gradient at fixed features, body gradient at the new head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..torch_compat import pytree

LossFunction = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Microbatch:
    """A microbatch after the forward pass of the body.

    Attributes:
        features: the body's output: tensors with a graph, in any nested containers.
        targets: the targets of these rows.
        share: the rows of this microbatch divided by those of the batch.
    """

    features: Any
    targets: Any
    share: float

    def with_leaf_features(self) -> tuple[Any, list[tuple[Tensor, Tensor]]]:
        """Return the features cut off the body's graph, and the pairs (feature, leaf) that connect the two graphs.

        The gradient of a leaf is the gradient of its feature. The returned features are copies of the leaves, because
        a head may begin with an in-place operation.
        """
        features, structure = pytree.tree_flatten(self.features)
        pairs = []
        for i, feature in enumerate(features):
            if isinstance(feature, Tensor) and feature.requires_grad:
                leaf = feature.detach().requires_grad_()
                pairs.append((feature, leaf))
                features[i] = leaf.clone()
        return pytree.tree_unflatten(features, structure), pairs

    def detached_features(self) -> Any:
        """Return copies of the features without a graph."""
        return pytree.tree_map(
            lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, self.features
        )

    @property
    def needs_gradient(self) -> bool:
        leaves = pytree.tree_leaves(self.features)
        return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)


def with_last(parts: list[Any]) -> Iterator[tuple[bool, Any]]:
    """Yield each part with a flag that is True for the last one."""
    return ((i == len(parts) - 1, part) for i, part in enumerate(parts))


def body_forward(body: Any, inputs: Any, synchronized: bool) -> Any:
    """Return `body(inputs)`.

    Args:
        body: a module or any callable.
        inputs: its argument.
        synchronized: whether the later backward pass reduces gradients, if `body` is a DistributedDataParallel.
    """
    with _no_sync(body, not synchronized):
        return body(inputs)


def _no_sync(module: Any, skip_reduction: bool) -> AbstractContextManager[Any]:
    return (
        module.no_sync()
        if skip_reduction and isinstance(module, DistributedDataParallel)
        else nullcontext()
    )


def _loss(loss_fn: LossFunction, outputs: Any, part: Microbatch) -> Tensor:
    """Return the microbatch's contribution to the loss of the batch, a tensor of one element."""
    loss = loss_fn(outputs, part.targets)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise ValueError(f"loss_fn must return a tensor of one element, got {got}")
    return loss if part.share == 1.0 else loss * part.share


def _scaled(loss: Tensor, scaler: Any) -> Tensor:
    return loss if scaler is None else scaler.scale(loss)


def head_gradient(
    head: Any, loss_fn: LossFunction, parts: list[Microbatch], scaler: Any, needs_features: bool
) -> Tensor:
    """Add grad_w f at fixed features to `.grad` of the head's parameters, and return the loss, [].

    Args:
        needs_features: compute the gradient of the features too, only to see that there is one.

    Raises:
        RuntimeError: there is none: the loss does not depend on the features. With `needs_features`, before any
            gradient was computed: a part of the head is checkpointed in torch's reentrant way.
    """
    total: Any = 0.0
    leaves: list[Tensor] = []
    for last, part in with_last(parts):
        with _no_sync(head, not last):
            features, pairs = (
                part.with_leaf_features() if needs_features else (part.detached_features(), [])
            )
            loss = _loss(loss_fn, head(features), part)
            if needs_features:
                _refuse_reentrant_checkpoint(loss)
            _scaled(loss, scaler).backward()
        leaves += [leaf for _, leaf in pairs]
        total = total + loss.detach().view(())
    if needs_features and all(leaf.grad is None for leaf in leaves):
        raise _no_dependence()
    return total


def _refuse_reentrant_checkpoint(loss: Tensor) -> None:
    """Raise for a checkpoint that would leave its part of the head without gradients: its features need none later."""
    if any(type(node).__name__ == "CheckpointFunctionBackward" for node in graph_of([loss])):
        raise RuntimeError(
            "the head or the loss uses torch.utils.checkpoint with use_reentrant=True, which gives no gradients for "
            "fixed features: pass use_reentrant=False there"
        )


def graph_of(tensors: Iterable[Any]) -> Iterator[Any]:
    """Yield each node of the autograd graph behind tensors once; other objects have none."""
    nodes = [tensor.grad_fn for tensor in tensors if isinstance(tensor, Tensor)]
    visited = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        yield node
        nodes.extend(next_node for next_node, _ in node.next_functions)


def _no_dependence() -> RuntimeError:
    return RuntimeError("the loss does not depend on what the body returned: the body cannot move")


def body_gradient(head: Any, loss_fn: LossFunction, parts: list[Microbatch], scaler: Any) -> Tensor:
    """Add grad_theta f at the current head to `.grad` of the body's parameters, and return the loss, [].

    At an exact head this is the hypergradient grad Phi(theta), by the envelope theorem.
    """
    # DistributedDataParallel around the head would wait for gradients of its parameters, and this pass has none
    bare_head = head.module if isinstance(head, DistributedDataParallel) else head
    total: Any = 0.0
    features: list[Tensor] = []
    gradients: list[Tensor] = []
    for part in parts:
        leaf_features, pairs = part.with_leaf_features()
        loss = _loss(loss_fn, bare_head(leaf_features), part)
        leaves = [leaf for _, leaf in pairs]
        leaf_gradients = torch.autograd.grad(_scaled(loss, scaler), leaves, allow_unused=True)
        for (feature, _), gradient in zip(pairs, leaf_gradients, strict=True):
            if gradient is not None:
                features.append(feature)
                gradients.append(gradient)
        total = total + loss.detach().view(())
    if not features:
        raise _no_dependence()
    # one backward pass for all microbatches: DistributedDataParallel reduces a gradient once it is complete
    torch.autograd.backward(features, gradients)
    return total
