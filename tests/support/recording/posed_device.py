"""Tensors in the host's memory that pass for those of a GPU: `device` says cuda:0, and `data_ptr()` is the host's.

torch's dispatcher sends what is done with them here, where an operation of a stream is made of it, which computes on
the CPU when it runs. It takes a torch that was built without CUDA: another one has kernels of its own.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from .order import Bytes

if TYPE_CHECKING:
    from .runtime import RecordingRuntime

GPU = torch.device("cuda", 0)
aten = torch.ops.aten
_IN_DLPACK, _IN_TORCH = 2, 1  # the type of the device: kDLCUDA, c10::DeviceType::CUDA
# whose functions make views of any memory
_ON_HOST = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_SET = aten.set_.source_Storage_storage_offset
# the host has to know what they compute
_WAITED_FOR = (
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
)


def unavailable() -> str:
    """Why tensors cannot be posed here, or empty."""
    if torch.version.cuda or torch.version.hip or torch.cuda.is_available():
        return "this torch has kernels for GPUs: tensors in the host's memory would reach them"
    if not hasattr(torch.library.Library, "fallback"):
        return "this torch has no fallbacks of the dispatcher in Python"
    try:
        _guards()
    except (OSError, ValueError, StopIteration) as error:
        return f"the table of torch's device guards is not found: {error}"
    return ""


def _guards() -> Any:
    """By type of device: what switches between devices of the type."""
    folder = os.path.join(os.path.dirname(torch.__file__), "lib")
    name = next(n for n in sorted(os.listdir(folder)) if n.startswith(("libc10.", "c10.dll")))
    library = ctypes.CDLL(os.path.join(folder, name))
    return (ctypes.c_void_p * 2).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")


_pointer_in = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_in.restype, _pointer_in.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def posed(tensor: Tensor) -> Tensor:
    """The same memory as a tensor of the GPU; a storage of its own."""
    capsule = torch.utils.dlpack.to_dlpack(tensor)
    # struct DLTensor: the address, then the type of the device
    device = _pointer_in(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p)
    ctypes.c_int32.from_address(device).value = _IN_DLPACK
    return torch.utils.dlpack.from_dlpack(capsule)


def on_host(tensor: Tensor) -> Tensor:
    """The memory of a posed tensor as one of the CPU, which keeps nothing alive."""
    nbytes = tensor.untyped_storage().nbytes() // tensor.element_size() * tensor.element_size()
    if not nbytes or not tensor.numel():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    memory = (ctypes.c_char * nbytes).from_address(tensor.untyped_storage().data_ptr())
    flat = torch.frombuffer(memory, dtype=tensor.dtype)
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def bytes_of(tensor: Tensor, writes: bool) -> Bytes:
    """From the first to the last element."""
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    size = tensor.element_size()
    return Bytes(tensor.data_ptr(), (reach + 1) * size if tensor.numel() else 0, writes)


def _is_posed(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_cuda


class PosedDevice:
    """Makes operations of a runtime's streams of what is done with posed tensors."""

    def __init__(self, runtime: RecordingRuntime) -> None:
        self._runtime = runtime

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within this context the dispatcher sends here whatever is done with tensors of a GPU."""
        guards = _guards()
        before = guards[_IN_TORCH]
        every, copies = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
        guards[_IN_TORCH] = guards[0]  # that of the CPU, which does nothing
        try:
            every.fallback(self._call, "CUDA")
            copies.impl("copy_", self._copy, "CUDA")
            with mock.patch.object(torch.cuda, "_lazy_init", return_value=None):
                yield
        finally:
            every._destroy()
            copies._destroy()
            guards[_IN_TORCH] = before

    def empty(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor in new memory of the current stream."""
        like = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
        nbytes = like.untyped_storage().nbytes()
        memory = self._runtime.memory
        block = memory.allocate(nbytes, self._runtime.current)
        handle = block.memory[:nbytes]
        weakref.finalize(handle, memory.free, block).atexit = False
        storage = posed(torch.from_numpy(handle)).untyped_storage()
        nothing = posed(torch.empty(0, dtype=dtype))
        return _SET.redispatch(_ON_HOST, nothing, storage, 0, shape, strides)

    def _call(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        schema = op._schema
        if op is aten.empty.memory_format:
            like = torch.empty(
                args[0],
                device="meta",
                memory_format=kwargs.get("memory_format") or torch.contiguous_format,
            )
            return self.empty(like.shape, like.stride(), kwargs.get("dtype") or torch.float32)
        if op is aten.empty_strided.default:
            return self.empty(args[0], args[1], kwargs.get("dtype") or torch.float32)
        if op is _SET or (not schema.is_mutable and any(r.alias_info for r in schema.returns)):
            return op.redispatch(_ON_HOST, *args, **kwargs)
        if op in _WAITED_FOR:
            return self._wait_for(op, args, kwargs)
        return self._enqueue(op, args, kwargs)

    def _wait_for(self, op: Any, args: Any, kwargs: Any) -> Any:
        found: list[Any] = []
        self._append(op, args, kwargs, [], lambda result: found.append(result))
        self._runtime.synchronize(f"{op}", self._runtime.current)
        if not found:  # under capture nothing runs; anything will do, it has been reported
            on_meta = tree_map(lambda v: on_host(v) if _is_posed(v) else v, (args, kwargs))
            found.append(op(*on_meta[0], **on_meta[1]))
        return tree_map(lambda v: self._moved(v) if isinstance(v, Tensor) else v, found[0])

    def _moved(self, tensor: Tensor) -> Tensor:
        made = self.empty(tensor.shape, tensor.stride(), tensor.dtype)
        return made.copy_(tensor)

    def _enqueue(self, op: Any, args: Any, kwargs: Any) -> Any:
        """An operation that writes to its arguments or to new tensors, as its schema says."""
        arguments = op._schema.arguments
        args = tuple(
            torch.tensor(v) if isinstance(v, (int, float)) and str(a.type) == "Tensor" else v
            for a, v in zip(arguments, args, strict=False)
        )
        named = {**{a.name: v for a, v in zip(arguments, args, strict=False)}, **kwargs}
        written = [
            named[a.name]
            for a in arguments
            if a.alias_info is not None and a.alias_info.is_write and a.name in named
        ]
        if written:
            self._append(op, args, kwargs, tree_flatten(written)[0], lambda result: None)
            returned = written[: len(op._schema.returns)]
            return tuple(returned) if len(returned) > 1 else (*returned, None)[0]
        layouts, spec = _layouts(op, args, kwargs)
        made = [self.empty(*layout) for layout in layouts]
        places = [on_host(each) for each in made]

        def keep(result: Any) -> None:
            for place, value in zip(places, tree_flatten(result)[0], strict=True):
                place.copy_(value)

        self._append(op, args, kwargs, made, keep)
        return tree_unflatten(made, spec)

    def _append(self, op: Any, args: Any, kwargs: Any, written: list[Any], keep: Any) -> None:
        read = [
            bytes_of(each, False) for each in tree_flatten((args, kwargs))[0] if _is_posed(each)
        ]
        writes = [bytes_of(each, True) for each in written if _is_posed(each)]
        host = _with(args, kwargs, on_host, "cpu")

        def run() -> None:
            with torch.no_grad():
                keep(op(*host[0], **host[1]))

        self._runtime.enqueue(str(op), run, [*read, *writes])

    def _copy(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """`copy_`, of which at least one side is on the GPU."""
        runtime = self._runtime
        to, what = (on_host(each) if each.is_cuda else each.detach() for each in (target, source))
        is_pinned = [not t.is_cuda and runtime.is_pinned(t) for t in (target, source)]
        accesses = [bytes_of(source, False), bytes_of(target, True)]
        name, where = "copy", runtime.where()
        if not source.is_cuda and not is_pinned[1]:
            # the driver reads it before the call returns
            what, accesses, name = what.clone(), accesses[1:], "copy of pageable memory"
            if runtime.current.graph is not None:
                runtime.report(f"a copy from pageable memory under capture, by {runtime.where()}")
        if not target.is_cuda and not is_pinned[0]:
            accesses = accesses[:1]

        # whoever writes there, by whatever way
        held = what.clone() if is_pinned[1] else None

        def run() -> None:
            if held is not None and not torch.equal(held.view(torch.uint8), what.view(torch.uint8)):
                runtime.report(f"a pinned block was overwritten before {name} of {where} read it")
            with torch.no_grad():
                to.copy_(what)

        runtime.enqueue(name, run, accesses)
        if target.is_cuda != source.is_cuda and not (
            non_blocking and (target.is_cuda or is_pinned[0])
        ):
            runtime.synchronize("a copy that the host waits for", runtime.current)
        return target


_known: dict[Any, tuple[list[Any], Any]] = {}


def _layouts(op: Any, args: Any, kwargs: Any) -> tuple[list[Any], Any]:
    """Shape, strides and dtype of each tensor that an operation makes, and how they are returned."""
    key: list[Any] = [op, tuple(kwargs)]
    for value in tree_flatten((args, kwargs))[0]:
        is_tensor = isinstance(value, Tensor)
        key.append((value.shape, value.stride(), value.dtype) if is_tensor else repr(value))
    found = _known.get(tuple(key))
    if found is None:
        meta = _with(args, kwargs, lambda t: torch.empty_like(t, device="meta"), "meta")
        flat, spec = tree_flatten(op(*meta[0], **meta[1]))
        found = [(each.shape, each.stride(), each.dtype) for each in flat], spec
        _known[tuple(key)] = found
    return found


def _with(args: Any, kwargs: Any, tensor: Any, device: str) -> Any:
    """The arguments with other tensors in the place of posed ones, and another device."""

    def replaced(value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device(device)
        return tensor(value) if _is_posed(value) else value

    return tree_map(replaced, (args, kwargs))
