"""Step counts and moments that the user put into the state: whose memory they lie in, and who advances them."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from backends import chosen
from cases import normal, step
from checks import Snapshot
from paths import SUPPORT
from torch import nn

import stackelberg_fused as sf

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


def _sides(backend: str = "cpu", **more: Any) -> list[tuple[Any, list[nn.Parameter]]]:
    sides = []
    for cls, how in ((torch.optim.Adam, {}), (sf.StackelbergAdam, {"backend": backend, **more})):
        params = [nn.Parameter(normal((4, 3), i)) for i in range(3)]
        sides.append((cls(params, lr=0.1, **how), params))
    return sides


def _give(optimizer: Any, param: nn.Parameter, step: torch.Tensor) -> None:
    moments = {name: torch.zeros_like(param) for name in ("exp_avg", "exp_avg_sq")}
    optimizer.state[param].update(step=step, **moments)


def _step(optimizer: Any, params: list[nn.Parameter], seed: int = 0) -> None:
    for i, p in enumerate(params):
        p.grad = normal(tuple(p.shape), 10 * seed + i)
    optimizer.step()


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
@BACKENDS
def test_a_count_stays_the_users_tensor(backend: str, dtype: torch.dtype, shape: Any) -> None:
    found = []
    for optimizer, params in _sides(backend):
        count = torch.full(shape, 3, dtype=dtype)
        _give(optimizer, params[0], count)
        for seed in range(2):
            _step(optimizer, params, seed)
        count += 4  # by another process
        params[1].grad = None
        optimizer.step()
        assert optimizer.state[params[0]]["step"] is count
        counts = [int(optimizer.state[p]["step"]) for p in params]
        found.append((count, counts, params))
    assert [counts for _, counts, _ in found] == [[10, 2, 3]] * 2
    for p, q in zip(found[0][2], found[1][2], strict=True):
        torch.testing.assert_close(p, q)


@BACKENDS
def test_shared_memory_stays_where_it_is(backend: str) -> None:
    ((_, _), (ours, params)) = _sides(backend)
    for p in params:
        _give(ours, p, torch.zeros(()))
        for value in ours.state[p].values():
            value.share_memory_()
    given = [dict(ours.state[p]) for p in params]
    _step(ours, params)
    ours.param_groups[0]["amsgrad"] = True
    _step(ours, params)
    ours.add_param_group({"params": [nn.Parameter(torch.ones(2))], "role": "head"})
    ours.param_groups[0]["role"] = "head"
    _step(ours, params)
    for p, entry in zip(params, given, strict=True):
        assert entry["step"].item() == 3
        for name, value in entry.items():
            assert ours.state[p][name].data_ptr() == value.data_ptr(), name
            assert value.is_shared(), name
            assert value.count_nonzero(), name
        assert ours.state[p]["step"] is entry["step"]


def test_a_count_may_be_shared_after_it_was_given() -> None:
    _, (ours, params) = _sides()
    count = torch.zeros(())
    _give(ours, params[0], count)
    _step(ours, params)
    count.share_memory_()
    _step(ours, params)
    assert count.item() == 2


def test_moments_that_a_kernel_cannot_read_are_copied() -> None:
    _, (ours, params) = _sides()
    _give(ours, params[0], torch.zeros(()))
    given = ours.state[params[0]]["exp_avg"] = torch.ones(3, 4).t()
    before = [p.detach().clone() for p in params]
    _step(ours, params)
    expected = 0.9 * torch.ones(4, 3) + 0.1 * params[0].grad
    torch.testing.assert_close(ours.state[params[0]]["exp_avg"], expected)
    assert given.eq(1.0).all()
    assert not torch.equal(params[0], before[0])


def test_a_rebuild_takes_its_own_counts_for_its_own() -> None:
    _, (ours, params) = _sides()
    _step(ours, params)
    _give(ours, params[0], torch.ones(()))
    for seed in range(2):
        _step(ours, params, seed)
        ours.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    (unit,) = ours._engine.units
    assert list(unit.table.given_counts) == [0]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_count_for_themselves(copied: Any) -> None:
    _, (ours, params) = _sides()
    count = torch.zeros(())
    _give(ours, params[0], count)
    _step(ours, params)
    again = copied(ours)
    copies = again.param_groups[0]["params"]
    _step(again, copies)
    assert again.state[copies[0]]["step"].item() == 2
    assert not again._engine.units[0].table.given_counts
    assert count.item() == 1


def test_a_loaded_state_dict_brings_counts_of_the_optimizers_own() -> None:
    """As in torch, where loading replaces the tensors."""
    _, (ours, params) = _sides()
    count = torch.zeros(())
    _give(ours, params[0], count)
    _step(ours, params)
    ours.load_state_dict(ours.state_dict())
    _step(ours, params)
    assert ours.state[params[0]]["step"].item() == 2
    assert count.item() == 1


def test_counts_that_are_none_are_refused_before_anything_moves() -> None:
    _, (ours, params) = _sides()
    count = torch.zeros(())
    _give(ours, params[1], count)
    _step(ours, params)
    count.fill_(torch.nan)
    before = [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match=r"parameter 1 of param group 0.*step is nan"):
        _step(ours, params)
    assert all(map(torch.equal, params, before))


def test_a_step_that_the_device_counts_refuses_them() -> None:
    instance, device = chosen("cuda-on-host")
    p = nn.Parameter(torch.ones(4, device=device))
    ours = sf.StackelbergAdam([p], backend=instance)
    _give(ours, p, torch.zeros(()))
    p.grad, ours.found_inf = torch.ones_like(p), torch.zeros((), device=device)
    with pytest.raises(
        ValueError, match=r"parameter 0 of param group 0.*state\['step'\] is a tensor"
    ):
        ours.step()
    assert p.tolist() == [1.0] * 4
    ours.step()  # an error forgets what a scaler said
    assert ours.state[p]["step"].item() == 1


@pytest.mark.slow
def test_processes_that_share_counts_and_moments() -> None:
    script = SUPPORT / "actors_with_shared_state.py"
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.endswith("checked\n")


def _of_inference() -> torch.Tensor:
    with torch.inference_mode():
        return torch.tensor(1.0)


UNFIT = {
    "a truth value": lambda: torch.tensor(True),
    "complex": lambda: torch.tensor(1 + 0j),
    "of a dtype that cannot be added to": lambda: torch.tensor(1, dtype=torch.uint16),
    "of eight bits": lambda: torch.tensor(1.0).to(torch.float8_e5m2),
    "of inference mode": _of_inference,
}


@pytest.mark.parametrize("unfit", UNFIT)
@BACKENDS
def test_a_count_that_cannot_be_advanced_is_refused_before_anything_moves(
    backend: str, unfit: str
) -> None:
    (_, (ours, params)) = _sides(backend)
    _step(ours, params)
    own = ours.state[params[1]]["step"]
    ours.state[params[1]]["step"] = UNFIT[unfit]()
    before = Snapshot(ours)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"parameter 1 of param group 0.*cannot be advanced"):
            ours.step()
        before.assert_unchanged()
    ours.state[params[1]]["step"] = own
    _step(ours, params)
    assert [float(ours.state[p]["step"]) for p in params] == [2.0] * 3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.bfloat16])
@BACKENDS
def test_a_count_of_few_bits_is_advanced(backend: str, dtype: torch.dtype) -> None:
    for optimizer, params in _sides(backend):
        count = torch.tensor(3, dtype=dtype)
        _give(optimizer, params[0], count)
        _step(optimizer, params)
        assert count == 4
        assert optimizer.state[params[0]]["step"] is count


@BACKENDS
def test_a_count_with_a_gradient_is_advanced(backend: str) -> None:
    (_, (ours, params)) = _sides(backend)
    count = torch.tensor(3.0, requires_grad=True)
    _give(ours, params[0], count)
    _step(ours, params)
    assert count == 4


def test_an_entry_that_is_put_back_is_no_count_of_the_users() -> None:
    body, head = (nn.Parameter(normal(3, i)) for i in range(2))
    ours = sf.StackelbergAdamW([body, head], lr=0.1)
    step(ours)
    entry = ours.state.pop(head)
    head.requires_grad_(False)
    head.grad = None
    ours.step()
    ours.state[head] = entry
    head.requires_grad_(True)
    step(ours, seed=1)
    assert not any(unit.table.given_counts for unit in ours._engine.units)
    assert float(ours.state[head]["step"]) == 2
