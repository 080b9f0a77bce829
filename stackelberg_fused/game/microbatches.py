"""Split a batch along its first dimension into microbatches of equal size, up to one row."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..torch_compat import pytree


def batch_size(batch: Any, name: str) -> int | None:
    """Return the size of the first dimension that all tensors of a batch share, or None without tensors.

    Args:
        batch: a tensor, or tensors in nested tuples, lists, dicts and named tuples.
        name: of the argument, for the messages.

    Raises:
        ValueError: the sizes differ, or a tensor has no dimensions.
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
    """Split a batch into parts whose sizes differ by at most one row. Each part gets all leaves that are not tensors.

    Args:
        batch: as in `batch_size`.
        parts: the number of parts, >= 1.
        name: of the argument, for the messages.

    Raises:
        ValueError: the batch has fewer rows than `parts`, or cannot be split.
    """
    if parts == 1:
        return [batch]
    size = batch_size(batch, name)
    if size is not None and size < parts:
        raise ValueError(f"{name}: {size} rows cannot be cut into {parts} microbatches")
    leaves, structure = pytree.tree_flatten(batch)
    leaf_parts = [
        leaf.tensor_split(parts) if isinstance(leaf, Tensor) else (leaf,) * parts for leaf in leaves
    ]
    return [pytree.tree_unflatten([p[i] for p in leaf_parts], structure) for i in range(parts)]


def split_both(inputs: Any, targets: Any, parts: int) -> list[tuple[Any, Any, float]]:
    """Split inputs and targets alike; return (inputs, targets, share of the batch's rows) of each part.

    Raises:
        ValueError: as `split`; or inputs and targets have different numbers of rows.
    """
    if parts == 1:
        return [(inputs, targets, 1.0)]
    sizes = batch_size(inputs, "inputs"), batch_size(targets, "targets")
    if sizes[0] is None:
        raise ValueError("inputs: no tensor in them that could be cut into microbatches")
    if sizes[1] not in (None, sizes[0]):
        raise ValueError(f"inputs have {sizes[0]} rows, targets {sizes[1]}")
    input_parts, target_parts = split(inputs, parts, "inputs"), split(targets, parts, "targets")
    shares = [(batch_size(part, "inputs") or 0) / sizes[0] for part in input_parts]
    return list(zip(input_parts, target_parts, shares, strict=True))
