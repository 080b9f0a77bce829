"""Balls over shards: the same weights to the bit on every number of ranks, and as if nothing were sharded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from backends import chosen
from ball_runs import BODIES, HEADS, SHAPES, BallRun, assert_equal
from cases import normal
from ranks import Ranks, of_ranks
from torch import Tensor, nn
from wrapped_models import local, whole

import stackelberg_fused as sf
from stackelberg_fused.backends.triton import is_interpreting

pytestmark = of_ranks
LAYOUTS = [
    ("rows", 1),
    ("rows", 2),
    ("rows", 3),
    ("columns", 2),
    ("columns", 3),
    ("copies", 2),
    ("copies of rows", 4),
    ("rows and columns", 4),
    ("two meshes", 4),
    ("some not sharded", 2),
]
BACKENDS = ["cpu", "reference", "cuda-on-host"]
if is_interpreting():  # which takes its time
    BACKENDS, LAYOUTS = ["triton"], [("rows", 2), ("some not sharded", 2)]
by_backend = pytest.mark.parametrize("backend", BACKENDS)
by_layout = pytest.mark.parametrize("layout, world", LAYOUTS)


def _is_as_without_shards(layout: str, backend: str, how: dict[str, Any]) -> None:
    ours, expected = BallRun(layout, backend, **how), BallRun(None, backend, **how)
    for run in (ours, expected):
        assert run.norm(BODIES) > 2.0
        for number in range(3):
            run.step(number)
            assert 2.0 * (1 - 1e-2) < run.norm(BODIES) <= 2.0
    assert_equal(ours, expected)
    expected_launches = 0 if backend == "reference" else 6
    assert ours.optimizer.launches == expected_launches


@by_backend
@by_layout
def test_weights_have_the_bits_of_the_unsharded_ones(
    ranks: Ranks, layout: str, world: int, backend: str
) -> None:
    ranks(world, _is_as_without_shards, layout, backend, {"ema_decay": 0.9})


def _stochastic(layout: str) -> None:
    _is_as_without_shards(
        layout, "reference", {"dtype": torch.bfloat16, "master": "stochastic", "lr": 0.3}
    )


@pytest.mark.parametrize("layout, world", [("rows", 3), ("columns", 2), ("rows and columns", 4)])
def test_stochastic_bfloat16(ranks: Ranks, layout: str, world: int) -> None:
    ranks(world, _stochastic, layout)


def _with_turns(layout: str, backend: str, grads: str) -> None:
    how = {"update_every": {"body": 2}, "update_every_grads": grads, "ema_decay": 0.5}
    ours, expected = BallRun(layout, backend, **how), BallRun(None, backend, **how)
    for run in (ours, expected):
        for number in range(5):
            # the head alone moves while the body waits
            before = run.norm(BODIES)
            run.step(number, of=(*BODIES, *HEADS)[number % 2 :])
            assert (run.norm(BODIES) == before) == (number % 2 == 0)
    assert_equal(ours, expected)


@by_backend
@pytest.mark.parametrize("grads", ["latest", "mean"])
def test_turns(ranks: Ranks, backend: str, grads: str) -> None:
    ranks(2, _with_turns, "rows", backend, grads)


def _by_role(layout: str, backend: str) -> None:
    ours, expected = BallRun(layout, backend, flatten=False), BallRun(None, backend, flatten=False)
    for run in (ours, expected):
        before = run.norm(BODIES)
        run.step(0, role="head")
        assert run.norm(HEADS) <= 0.5
        assert run.norm(BODIES) == before
        run.step(1, role="body")
        assert run.norm(BODIES) <= 2.0
        run.step(2, zero_grad=True)
        assert all(p.grad is None for p in run.params)
    assert_equal(ours, expected)


@by_backend
@pytest.mark.parametrize("layout, world", [("rows", 3), ("some not sharded", 2)])
def test_steps_of_one_role(ranks: Ranks, layout: str, world: int, backend: str) -> None:
    ranks(world, _by_role, layout, backend)


def _alternating(backend: str) -> None:
    how = {"mode": "alternating"}
    ours, expected = BallRun("rows", backend, **how), BallRun(None, backend, **how)
    for run in (ours, expected):
        for number in range(2):

            def closure(run: BallRun = run, number: int = number) -> float:
                run.give(number)
                return 0.0

            run.optimizer.step(closure)
    assert_equal(ours, expected)


@by_backend
def test_alternating_steps(ranks: Ranks, backend: str) -> None:
    ranks(2, _alternating, backend)


def _one_rank_has_no_gradients(backend: str, which: tuple[int, ...], role: str | None) -> None:
    """Its elements are scaled all the same: those of a parameter whose gradient is zero there."""
    how = {"rule": sf.StackelbergSGD, "lr": 0.1, "max_grad_norm": None}
    ours, expected = BallRun("rows", backend, **how), BallRun(None, backend, **how)
    for number in range(2):
        for run in (ours, expected):
            run.give(number)
        for i in which:
            p, q = ours.params[i], expected.params[i]
            local_rows = len(local(p)) if dist.get_rank() == 0 else 0
            first = torch.tensor(local_rows)
            dist.broadcast(first, 0)
            q.grad[int(first) :] = 0.0
            if dist.get_rank() == 1:
                p.grad = None
        for run in (ours, expected):
            run.optimizer.step(role=role)
    for a, b in zip(ours.held()[: len(SHAPES)], expected.held()[: len(SHAPES)], strict=True):
        assert torch.equal(a, b), (a, b)


@by_backend
@pytest.mark.parametrize(
    "which, role",
    [((*BODIES, *HEADS), None), (BODIES, None), ((0, 1), None), (BODIES, "body")],
    ids=["all", "of a ball", "some of a ball", "all of a role"],
)
def test_elements_of_a_rank_without_gradients(
    ranks: Ranks, backend: str, which: tuple[int, ...], role: str | None
) -> None:
    ranks(2, _one_rank_has_no_gradients, backend, which, role)


def _nothing_moves(backend: str) -> None:
    run = BallRun("rows", backend)
    kept = [whole(p.detach()).clone() for p in run.params]
    run.optimizer.step()
    run.step(0, of=HEADS)
    for i in BODIES:
        assert torch.equal(whole(run.params[i].detach()), kept[i])


@by_backend
def test_a_ball_of_which_nothing_moved_stays(ranks: Ranks, backend: str) -> None:
    ranks(2, _nothing_moves, backend)


def _skipped_steps(backend: str, sees: tuple[int, ...], has_grads: tuple[int, ...]) -> None:
    """A step that a scaler skips on some ranks is skipped by all, and changes nothing."""
    which = (*BODIES, *HEADS) if dist.get_rank() in has_grads else ()
    ours, expected = BallRun("rows", backend), BallRun(None, backend)
    for run in (ours, expected):
        run.step(0)
    for found in (1.0, 0.0):
        for run in (ours, expected):
            is_skipped = found > 0 and (run is expected or dist.get_rank() in sees)
            run.optimizer.grad_scale = torch.tensor(4.0)
            run.optimizer.found_inf = torch.tensor(1.0 if is_skipped else 0.0)
            if run is ours and not which:
                run.optimizer.found_inf = 0  # what torch's scaler makes of no gradients
            before = [tensor.clone() for tensor in run.held()]
            run.step(1, of=(*BODIES, *HEADS) if run is expected or found == 0.0 else which)
            assert run.optimizer.last_step.skipped == (found > 0)
            if found:
                assert all(map(torch.equal, run.held(), before))
            del run.optimizer.grad_scale, run.optimizer.found_inf
        assert_equal(ours, expected)


@by_backend
@pytest.mark.parametrize(
    "sees, has_grads",
    [((0, 1), (0, 1)), ((1,), (0, 1)), ((1,), (1,))],
    ids=["all ranks", "one rank", "one rank, which alone has gradients"],
)
def test_skipped_steps(
    ranks: Ranks, backend: str, sees: tuple[int, ...], has_grads: tuple[int, ...]
) -> None:
    ranks(2, _skipped_steps, backend, sees, has_grads)


def _with_our_scaler(backend: str) -> None:
    ours, expected = BallRun("rows", backend), BallRun(None, backend)
    for run in (ours, expected):
        scaler = sf.GradScaler("cpu", init_scale=8.0)
        for number in range(3):
            scaler.scale(torch.ones(()))
            run.give(number)
            if number == 1:
                grad = local(run.params[0].grad)
                if dist.get_rank() == 1 or run is expected:
                    grad[-1, 0] = torch.inf
            scaler.step(run.optimizer)
            scaler.update()
    assert_equal(ours, expected)


@by_backend
def test_a_scaler_that_looks_for_infinities_in_the_step(ranks: Ranks, backend: str) -> None:
    ranks(2, _with_our_scaler, backend)


def _clipped(backend: str) -> None:
    how = {"max_grad_norm": 0.1}
    ours, expected = BallRun("rows", backend, **how), BallRun(None, backend, **how)
    for run in (ours, expected):
        for number in range(2):
            run.step(number)
    assert_equal(ours, expected)


@by_backend
def test_beside_clipping(ranks: Ranks, backend: str) -> None:
    ranks(3, _clipped, backend)


def _edited() -> None:
    ours, expected = (BallRun(layout, "cpu", constraint=None) for layout in ("rows", None))
    for run in (ours, expected):
        for number, ball in enumerate([None, sf.L2Ball(1.0), sf.L2Ball(0.1), sf.Box(-1, 1), None]):
            run.optimizer.param_groups[0]["constraint"] = ball
            run.step(number)
            if isinstance(ball, sf.L2Ball):
                assert run.norm(BODIES) <= ball.radius
        run.optimizer.param_groups[0]["constraint"] = sf.L2Ball(0.7)
        run.optimizer.load_state_dict(run.optimizer.state_dict())
        run.step(7)
        assert run.norm(BODIES) <= 0.7
    assert_equal(ours, expected)


def test_a_ball_that_comes_between_steps(ranks: Ranks) -> None:
    ranks(2, _edited)


def _released(backend: str) -> None:
    def loss(run: BallRun) -> Tensor:
        wholes = [whole(p) for p in run.params]
        return sum((p * p.detach()).sum() * (i + 1) for i, p in enumerate(wholes))

    how = {"constraint": {"body": sf.L2Ball(0.5)}}
    ours, expected = (
        BallRun("rows", backend, release="backward", **how),
        BallRun("rows", backend, **how),
    )
    for run in (ours, expected):
        for _ in range(3):
            loss(run).backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
        assert run.norm(BODIES) <= 0.5
    assert_equal(ours, expected)


@by_backend
def test_released_in_the_backward_pass(ranks: Ranks, backend: str) -> None:
    ranks(2, _released, backend)


def _gapped(backend: str) -> None:
    from torch.distributed.tensor import DTensor, Shard

    mesh = dist.init_device_mesh("cpu", (2,))
    values = normal((6, 8), 1)
    rows = values[3 * dist.get_rank() :][:3]
    gaps = torch.full((3, 16), 9.0)
    gaps[:, ::2] = rows
    for grad in (torch.zeros(6, 8), None):
        p = nn.Parameter(DTensor.from_local(gaps[:, ::2], mesh, [Shard(0)], run_check=False))
        q = nn.Parameter(values.clone())
        for param, whole_grad in ((p, torch.zeros(3, 8)), (q, torch.zeros(6, 8))):
            ours = sf.StackelbergSGD(
                [param], lr=1.0, backend=chosen(backend)[0], constraint=sf.L2Ball(1.0)
            )
            has_grad = param is q or grad is not None or dist.get_rank() == 0
            if has_grad:
                is_sharded = param is p
                param.grad = (
                    DTensor.from_local(whole_grad, mesh, [Shard(0)], run_check=False)
                    if is_sharded
                    else whole_grad
                )
            ours.step()
        assert torch.equal(p.detach().full_tensor(), q.detach())
        assert gaps[:, 1::2].eq(9.0).all()


@by_backend
def test_shards_with_gaps(ranks: Ranks, backend: str) -> None:
    ranks(2, _gapped, backend)
