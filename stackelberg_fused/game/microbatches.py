"""Batches cut into equal parts along their first dimension."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..torch_compat import pytree


def batch_size(batch: Any, name: str) -> int | None:
    """Length of the first dimension of the tensors in a batch, or None where it holds none.

    Args:
        batch: a tensor, or tensors in any nest of tuples, lists, dicts, named tuples.

    Raises:
        ValueError: the tensors do not agree, or one has no dimensions.
    """
    sizes = set()
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, Tensor):
            if leaf.dim() == 0:
                raise ValueError(
                    f"{name}: a tensor without dimensions cannot be cut into microbatches"
                )
            sizes.add(leaf.shape[0])
    if len(sizes) > 1:
        raise ValueError(
            f"{name}: cannot be cut into microbatches, tensors have {sorted(sizes)} rows"
        )
    return sizes.pop() if sizes else None


def split(batch: Any, parts: int, name: str) -> list[Any]:
    """The parts of a batch, whose sizes differ by one at most; what is no tensor is in each of them.

    Raises:
        ValueError: it has fewer rows than there are to be parts, or cannot be cut.
    """
    if parts == 1:
        return [batch]
    size = batch_size(batch, name)
    if size is not None and size < parts:
        raise ValueError(f"{name}: {size} rows cannot be cut into {parts} microbatches")
    leaves, structure = pytree.tree_flatten(batch)
    cut = [
        leaf.tensor_split(parts) if isinstance(leaf, Tensor) else (leaf,) * parts for leaf in leaves
    ]
    return [pytree.tree_unflatten([pieces[i] for pieces in cut], structure) for i in range(parts)]


def split_both(inputs: Any, targets: Any, parts: int) -> list[tuple[Any, Any, float]]:
    """Inputs, targets and share of the batch of each part.

    Raises:
        ValueError: as `split`; inputs and targets have different numbers of rows.
    """
    if parts == 1:
        return [(inputs, targets, 1.0)]
    sizes = batch_size(inputs, "inputs"), batch_size(targets, "targets")
    if sizes[0] is None:
        raise ValueError("inputs: no tensor in them that could be cut into microbatches")
    if sizes[1] not in (None, sizes[0]):
        raise ValueError(f"inputs have {sizes[0]} rows, targets {sizes[1]}")
    cut = split(inputs, parts, "inputs"), split(targets, parts, "targets")
    shares = [(batch_size(part, "inputs") or 0) / sizes[0] for part in cut[0]]
    return list(zip(*cut, shares, strict=True))
