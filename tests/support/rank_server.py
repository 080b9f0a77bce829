"""The processes behind `ranks.py`; run as `python rank_server.py SOCKET...`, a socket's file descriptor for each rank.

torch is imported once and the ranks are forked from there: what they share costs its time and memory once.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

import stackelberg_fused  # noqa: F401

_modules: dict[str, ModuleType] = {}


def _preload() -> None:
    """Import before the fork what ranks would import each on their own."""
    import torch.distributed.checkpoint.state_dict
    import torch.distributed.fsdp
    import torch.distributed.tensor.parallel  # noqa: F401


def function_of(path: str, name: str) -> Callable[..., Any]:
    """A function of a test module, which cannot be imported by name, from its file."""
    if path not in _modules:
        spec = importlib.util.spec_from_file_location(f"of_ranks_{len(_modules)}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module
        spec.loader.exec_module(module)
        _modules[path] = module
    return getattr(_modules[path], name)


def _call(rank: int, job: dict[str, Any]) -> Any:
    function = function_of(job["path"], job["name"])
    store = dist.FileStore(job["store"], job["world"])
    # it is the caller who ends those that are stuck, and says where
    limit = timedelta(days=1)
    dist.init_process_group("gloo", None, limit, job["world"], rank, store)
    try:
        torch.manual_seed(0)
        result = function(*job["args"])
        dist.barrier()  # or the process group would go while others are still in it
        return result
    finally:
        dist.destroy_process_group()


def serve(rank: int, connection: Connection, stacks: str) -> None:
    """Call what comes until nobody is there any more."""
    torch.set_num_threads(1)
    with open(stacks, "w") as file:
        faulthandler.register(signal.SIGUSR1, file)
        connection.send_bytes(pickle.dumps(os.getpid()))
        while True:
            try:
                job = pickle.loads(connection.recv_bytes())
            except EOFError:
                return
            try:
                answer = True, _call(rank, job)
            except BaseException:
                answer = False, traceback.format_exc()
            connection.send_bytes(pickle.dumps(answer))


def main(folder: str, descriptors: list[int]) -> None:
    _preload()
    children = []
    for rank, descriptor in enumerate(descriptors):
        child = os.fork()
        if child:
            children.append(child)
            continue
        for other in descriptors:
            if other != descriptor:
                os.close(other)
        try:
            serve(rank, Connection(descriptor), f"{folder}/stack-{rank}")
        finally:
            os._exit(0)
    for descriptor in descriptors:
        os.close(descriptor)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1], [int(word) for word in sys.argv[2:]])
