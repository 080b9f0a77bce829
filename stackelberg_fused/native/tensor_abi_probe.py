"""Compares all that native code reads of tensors with what Python says of them.

On tensors where a wrong answer cannot look right by chance: sizes and strides are all different, data does not begin
where its storage does, and among tensors with a gradient are some without.
"""

from __future__ import annotations

import array
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from ..torch_compat import disabled_dispatch, implementation_of, version_of

try:
    from .._cpu import TensorAbi
except ImportError:
    TensorAbi = None


def open_abi(library: str = "") -> Any:
    """Return a `TensorAbi` that agrees with Python.

    Modes that are active (inference, fake tensors, a default device) change what is probed: call this in a new thread,
    which has none.

    Args:
        library: path of a library that is loaded already, to take for libtorch.

    Raises:
        RuntimeError, AttributeError: it does not, or this torch lacks something. One whose functions are others under
            the same names may also end the process.
    """
    for _ in range(
        2
    ):  # what the first one made is given back to torch before anybody relies on that
        probe = _laid_out(torch.float32, (2, 3), (1, 2), 4)
        abi = TensorAbi(
            (Tensor, nn.Parameter),
            disabled_dispatch(),
            probe,
            implementation_of(probe),
            probe.data_ptr(),
            library,
        )
        check(abi)
    return abi


def check(abi: Any) -> None:
    """Compare a `TensorAbi` with Python.

    Raises:
        RuntimeError: they disagree; says in what.
    """
    samples = make_samples()
    numbers = _Numbers()
    for name, tensor in samples.items():
        _compare(f"a tensor ({name})", abi.describe(tensor), tensor, numbers)
        _compare(f"a gradient ({name})", abi.describe_gradient(tensor), tensor.grad, numbers)
        if abi.gradient_object(tensor) is not tensor.grad:
            raise RuntimeError(
                f"of a gradient ({name}) native code finds another object than Python"
            )
    _check_versions(abi)
    _check_keeping(abi)


def make_samples() -> dict[str, Tensor]:
    """Return tensors of every kind that is read, by what is special about them."""
    samples = {
        "transposed": nn.Parameter(_laid_out(torch.float32, (2, 3), (1, 2), 7)),
        "without gradient": nn.Parameter(_laid_out(torch.bfloat16, (5, 1, 7), (23, 17, 2), 3)),
        "a view": _laid_out(torch.float64, (), (), 5),
        # autograd has no record of it, so that its gradient is nowhere
        "no view": torch.zeros(4, 9, dtype=torch.float32, device="cpu"),
        # sizes of more than five dimensions are kept elsewhere
        "seven dimensions": nn.Parameter(
            _laid_out(torch.float32, (2, 1, 3, 1, 2, 1, 5), (331, 7, 97, 3, 41, 2, 5), 13)
        ),
        "empty": nn.Parameter(_laid_out(torch.float32, (0, 3), (4, 1), 0)),
        "with a sparse gradient": nn.Parameter(_laid_out(torch.float16, (4, 2), (2, 1), 9)),
        "gradient taken back": nn.Parameter(_laid_out(torch.float64, (6,), (3,), 1)),
        "integers": _laid_out(torch.int64, (3, 4), (11, 2), 6),
        "complex": _laid_out(torch.complex64, (4,), (1,), 8),
        "without memory": torch.empty(3, 8, dtype=torch.float32, device="meta"),
    }
    samples["transposed"].grad = _laid_out(torch.float32, (2, 3), (29, 9), 11)
    samples["seven dimensions"].grad = _laid_out(
        torch.float32, (2, 1, 3, 1, 2, 1, 5), (199, 6, 61, 4, 27, 8, 3), 17
    )
    samples["empty"].grad = _laid_out(torch.float32, (0, 3), (1, 5), 0)
    samples["with a sparse gradient"].grad = torch.zeros(
        4, 2, dtype=torch.float16, device="cpu"
    ).to_sparse()
    samples["gradient taken back"].grad = _laid_out(torch.float64, (6,), (1,), 0)
    samples["gradient taken back"].grad = None
    return samples


def _laid_out(
    dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> Tensor:
    last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True) if n)
    memory = torch.zeros(offset + last + 1, dtype=dtype, device="cpu")
    return memory.as_strided(shape, strides, offset)


class _Numbers:
    """Numbers that native code reads in the place of dtypes and devices: as different as these are."""

    def __init__(self) -> None:
        self._numbers: dict[Any, Any] = {}
        self._meanings: dict[Any, Any] = {}

    def fit(self, kind: str, meaning: Any, number: Any) -> bool:
        first = self._numbers.setdefault((kind, meaning), number)
        return first == number and self._meanings.setdefault((kind, number), meaning) == meaning


def _compare(what: str, found: Any, tensor: Tensor | None, numbers: _Numbers) -> None:
    if tensor is None:
        expected: Any = None
        right = found is None
    elif tensor.layout is not torch.strided:
        expected = (implementation_of(tensor), False)
        right = found == expected
    else:
        expected = (
            implementation_of(tensor),
            tensor.data_ptr(),
            tuple(tensor.shape),
            tensor.stride(),
        )
        right = (
            found is not None
            and len(found) == 7
            and found[:4] == expected
            and numbers.fit("dtype", tensor.dtype, found[4])
            and numbers.fit("device", tensor.device.type, found[5])
            and found[6] == (-1 if tensor.device.index is None else tensor.device.index)
        )
    if not right:
        about = "" if tensor is None else f" of {tensor.dtype} on {tensor.device}"
        raise RuntimeError(f"of {what}{about} native code reads {found}, Python {expected}")


def _check_versions(abi: Any) -> None:
    with torch.inference_mode():
        without = torch.zeros(2, device="cpu")
    base = torch.zeros(4, device="cpu")
    counted = [base[1:], nn.Parameter(torch.zeros(3, device="cpu"))]
    seen = [base, counted[1], torch.zeros(2, device="cpu")]
    before = [version_of(tensor) for tensor in seen]
    abi.increment_versions([counted[0], without, counted[1], counted[1]])
    increments = [version_of(tensor) - old for tensor, old in zip(seen, before, strict=True)]
    if increments != [1, 2, 0]:
        raise RuntimeError(f"versions were incremented by {increments}, not by [1, 2, 0]")


def _check_keeping(abi: Any) -> None:
    """Gradients stay alive as long as they are kept, and no longer; the second time with handles used before."""
    for _ in range(2):
        memory = array.array("f", [1.0, 2.0, 3.0])
        param = nn.Parameter(torch.zeros(3, dtype=torch.float32, device="cpu"))
        param.grad = torch.frombuffer(memory, dtype=torch.float32)
        alive = weakref.ref(memory)
        del memory
        kept = TensorAbi.keep_gradients(abi, [param])
        param.grad = None
        if alive() is None:
            raise RuntimeError("a gradient that native code keeps was freed")
        del kept
        if alive() is not None:
            raise RuntimeError("a gradient that native code let go was not freed")
