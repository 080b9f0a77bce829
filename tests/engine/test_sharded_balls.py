"""Balls over shards: the same weights to the bit on every number of ranks, and as if nothing were sharded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from backends import chosen
from cases import normal
from checks import Snapshot
from ranks import Ranks, of_ranks
from sharded_layouts import lay_out
from torch import Tensor, nn
from wrapped_models import local, whole

import stackelberg_fused as sf
from stackelberg_fused.backends.triton import is_interpreting

pytestmark = of_ranks
# odd sizes: some ranks hold less than others, or nothing
SHAPES = [(7, 5), (70, 100), (1, 3), (2, 7), (9,), (2,)]
HEADS = (3, 5)
BODIES = (0, 1, 2, 4)
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
BALLS = {"body": sf.L2Ball(2.0), "head": sf.L2Ball(0.5)}


def _values(shift: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    # of all sizes, so that a sum with rounding would depend on its order
    return [
        (normal(shape, shift + i) * 10.0 ** (i - 3)).to(dtype) for i, shape in enumerate(SHAPES)
    ]


def _groups(params: list[Any], **of_body: Any) -> list[dict[str, Any]]:
    heads, bodies = ([params[i] for i in where] for where in (HEADS, BODIES))
    return [{"params": bodies, **of_body}, {"params": heads, "role": "head"}]


class _Run:
    """An optimizer of parameters that are laid out in some way; None: not sharded."""

    def __init__(
        self,
        layout: str | None,
        backend: str,
        rule: Any = sf.StackelbergAdamW,
        dtype: torch.dtype = torch.float32,
        **how: Any,
    ) -> None:
        self.layout, self.dtype = layout, dtype
        self.params = [nn.Parameter(p) for p in self.laid_out(_values(0, dtype))]
        how = {"lr": 0.1, "constraint": BALLS, "backend": chosen(backend)[0], **how}
        self.optimizer = rule(_groups(self.params), **how)

    def laid_out(self, values: list[Tensor]) -> list[Any]:
        return values if self.layout is None else lay_out(values, self.layout)

    def give(self, number: int, of: tuple[int, ...] = (*BODIES, *HEADS)) -> None:
        """Gradients of a step, of these parameters."""
        grads = self.laid_out(_values(50 * number + 20, self.dtype))
        for i, (p, grad) in enumerate(zip(self.params, grads, strict=True)):
            p.grad = grad if i in of else None

    def step(self, number: int, of: tuple[int, ...] = (*BODIES, *HEADS), **how: Any) -> None:
        self.give(number, of)
        self.optimizer.step(**how)

    def norm(self, which: tuple[int, ...]) -> float:
        return float(
            torch.cat([whole(self.params[i].detach()).double().view(-1) for i in which]).norm()
        )

    def held(self) -> list[Tensor]:
        """Whole weights and state."""
        found = [whole(p.detach()) for p in self.params]
        for p in self.params:
            values = self.optimizer.state[p].values()
            found += [whole(v) if isinstance(v, Tensor) else torch.tensor(v) for v in values]
        return found


def _assert_equal(ours: _Run, expected: _Run) -> None:
    for a, b in zip(ours.held(), expected.held(), strict=True):
        assert torch.equal(a, b), (a, b)


def _is_as_without_shards(layout: str, backend: str, how: dict[str, Any]) -> None:
    ours, expected = _Run(layout, backend, **how), _Run(None, backend, **how)
    for run in (ours, expected):
        assert run.norm(BODIES) > 2.0
        for number in range(3):
            run.step(number)
            assert 2.0 * (1 - 1e-2) < run.norm(BODIES) <= 2.0
    _assert_equal(ours, expected)
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
    ours, expected = _Run(layout, backend, **how), _Run(None, backend, **how)
    for run in (ours, expected):
        for number in range(5):
            # the head alone moves while the body waits
            before = run.norm(BODIES)
            run.step(number, of=(*BODIES, *HEADS)[number % 2 :])
            assert (run.norm(BODIES) == before) == (number % 2 == 0)
    _assert_equal(ours, expected)


@by_backend
@pytest.mark.parametrize("grads", ["latest", "mean"])
def test_turns(ranks: Ranks, backend: str, grads: str) -> None:
    ranks(2, _with_turns, "rows", backend, grads)


def _by_role(layout: str, backend: str) -> None:
    ours, expected = _Run(layout, backend, flatten=False), _Run(None, backend, flatten=False)
    for run in (ours, expected):
        before = run.norm(BODIES)
        run.step(0, role="head")
        assert run.norm(HEADS) <= 0.5
        assert run.norm(BODIES) == before
        run.step(1, role="body")
        assert run.norm(BODIES) <= 2.0
        run.step(2, zero_grad=True)
        assert all(p.grad is None for p in run.params)
    _assert_equal(ours, expected)


@by_backend
@pytest.mark.parametrize("layout, world", [("rows", 3), ("some not sharded", 2)])
def test_steps_of_one_role(ranks: Ranks, layout: str, world: int, backend: str) -> None:
    ranks(world, _by_role, layout, backend)


def _alternating(backend: str) -> None:
    how = {"mode": "alternating"}
    ours, expected = _Run("rows", backend, **how), _Run(None, backend, **how)
    for run in (ours, expected):
        for number in range(2):

            def closure(run: _Run = run, number: int = number) -> float:
                run.give(number)
                return 0.0

            run.optimizer.step(closure)
    _assert_equal(ours, expected)


@by_backend
def test_alternating_steps(ranks: Ranks, backend: str) -> None:
    ranks(2, _alternating, backend)


def _one_rank_has_no_gradients(backend: str, which: tuple[int, ...], role: str | None) -> None:
    """Its elements are scaled all the same: those of a parameter whose gradient is zero there."""
    how = {"rule": sf.StackelbergSGD, "lr": 0.1, "max_grad_norm": None}
    ours, expected = _Run("rows", backend, **how), _Run(None, backend, **how)
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
    run = _Run("rows", backend)
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
    ours, expected = _Run("rows", backend), _Run(None, backend)
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
        _assert_equal(ours, expected)


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
    ours, expected = _Run("rows", backend), _Run(None, backend)
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
    _assert_equal(ours, expected)


@by_backend
def test_a_scaler_that_looks_for_infinities_in_the_step(ranks: Ranks, backend: str) -> None:
    ranks(2, _with_our_scaler, backend)


def _clipped(backend: str) -> None:
    how = {"max_grad_norm": 0.1}
    ours, expected = _Run("rows", backend, **how), _Run(None, backend, **how)
    for run in (ours, expected):
        for number in range(2):
            run.step(number)
    _assert_equal(ours, expected)


@by_backend
def test_beside_clipping(ranks: Ranks, backend: str) -> None:
    ranks(3, _clipped, backend)


def _edited() -> None:
    ours, expected = (_Run(layout, "cpu", constraint=None) for layout in ("rows", None))
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
    _assert_equal(ours, expected)


def test_a_ball_that_comes_between_steps(ranks: Ranks) -> None:
    ranks(2, _edited)


def _released(backend: str) -> None:
    def loss(run: _Run) -> Tensor:
        wholes = [whole(p) for p in run.params]
        return sum((p * p.detach()).sum() * (i + 1) for i, p in enumerate(wholes))

    how = {"constraint": {"body": sf.L2Ball(0.5)}}
    ours, expected = _Run("rows", backend, release="backward", **how), _Run("rows", backend, **how)
    for run in (ours, expected):
        for _ in range(3):
            loss(run).backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
        assert run.norm(BODIES) <= 0.5
    _assert_equal(ours, expected)


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


def _different_balls() -> str:
    run = _Run("rows", "cpu", constraint={"body": sf.L2Ball(1.0 + dist.get_rank())})
    run.give(0)
    before = Snapshot(run.optimizer)
    with pytest.raises(ValueError, match=r"constraint of param group 0.*radius=1.0.*radius=2.0"):
        run.optimizer.step()
    before.assert_unchanged()
    return ""


def test_ranks_with_different_balls_are_told(ranks: Ranks) -> None:
    ranks(2, _different_balls)


def _warmed_up_from_zero(how: dict[str, Any]) -> None:
    """A rank that has only zeros must not take the first step, at a rate of 0, for one that asks for state alone."""
    ours, expected = (_Run(layout, "cpu", **how) for layout in ("rows", None))
    for run in (ours, expected):
        schedule = torch.optim.lr_scheduler.LambdaLR(run.optimizer, lambda step: min(step / 2, 1))
        for number in range(3):
            run.give(number)
            for p in run.params:
                rows = len(local(lay_out([torch.zeros(p.shape)], "rows")[0]))
                begin = torch.tensor(rows)
                dist.broadcast(begin, 0)
                if run is expected:
                    p.grad[int(begin) :] = 0.0
                elif dist.get_rank() == 1:
                    local(p.grad).zero_()
            run.optimizer.step()
            schedule.step()
    _assert_equal(ours, expected)


@pytest.mark.parametrize(
    "how", [{}, {"constraint": None, "max_grad_norm": 1.0}], ids=["ball", "clipped"]
)
def test_a_rank_that_has_only_zeros_at_a_rate_of_zero(ranks: Ranks, how: dict[str, Any]) -> None:
    ranks(2, _warmed_up_from_zero, how)


def _built_again(edit: str, how: dict[str, Any]) -> None:
    """Ranks of which one had no gradient yet come to a step at a rate of 0, which only looks like one for state."""
    run = _Run("rows", "cpu", rule=sf.StackelbergAdamW, **how)
    is_second = dist.get_rank() == 1
    run.step(0, of=() if is_second else (*BODIES, *HEADS))
    if edit == "another group":
        run.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    elif edit == "another state":
        run.optimizer.load_state_dict(run.optimizer.state_dict())
    else:
        run.optimizer.param_groups[0]["seed"] = 5
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0
    run.give(1)
    for p in run.params:
        if is_second:
            local(p.grad).zero_()
    run.optimizer.step()
    assert int(run.optimizer.state[run.params[0]]["step"]) == (1 if is_second else 2)


WAITING = pytest.mark.parametrize(
    "how", [{}, {"constraint": None, "max_grad_norm": 1.0}], ids=["ball", "clipped"]
)


@WAITING
@pytest.mark.parametrize("edit", ["another group", "another state", "another seed"])
def test_an_optimizer_built_again_before_all_ranks_have_state(
    ranks: Ranks, edit: str, how: dict[str, Any]
) -> None:
    ranks(2, _built_again, edit, how)


def _resumed(how: dict[str, Any]) -> None:
    """State that one rank alone has loaded, and a rate that one alone has set to 0."""
    for has_state, is_zero in ((0, (0, 1)), (1, (0, 1)), (None, (1,))):
        before, run = _Run("rows", "cpu", **how), _Run("rows", "cpu", **how)
        alone = _Run("rows", "cpu", constraint=None)
        alone.step(0)
        if dist.get_rank() == has_state:
            saved = before.optimizer.state_dict()
            saved["state"] = alone.optimizer.state_dict()["state"]
            run.optimizer.load_state_dict(saved)
        if dist.get_rank() in is_zero:
            for group in run.optimizer.param_groups:
                group["lr"] = 0.0
        run.step(1)
        run.step(2)
        steps = int(run.optimizer.state[run.params[0]]["step"])
        assert steps == 2 + (dist.get_rank() == has_state)


@WAITING
def test_ranks_of_which_one_has_state(ranks: Ranks, how: dict[str, Any]) -> None:
    ranks(2, _resumed, how)


def _differ_at_a_rate_of_zero() -> str:
    how: dict[str, Any] = {"constraint": {"body": sf.L2Ball(1.0)}}
    if dist.get_rank() == 1:
        how = {"constraint": None, "max_grad_norm": 1.0}
    run = _Run("rows", "cpu", **how)
    torch.optim.lr_scheduler.LambdaLR(run.optimizer, lambda step: step / 10)
    run.give(0)
    before = Snapshot(run.optimizer)
    with pytest.raises(ValueError, match="max_grad_norm is None on rank 0") as error:
        run.optimizer.step()
    before.assert_unchanged()
    return str(error.value)


def test_ranks_that_differ_are_told_at_a_rate_of_zero(ranks: Ranks) -> None:
    first, second = ranks(2, _differ_at_a_rate_of_zero)
    assert first == second


def _asks_for_state() -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    layer = nn.Linear(5, 1)
    layer.weight = nn.Parameter(lay_out([normal((1, 5), 1)], "rows")[0])
    layer.bias = nn.Parameter(lay_out([normal((1,), 2)], "rows")[0])
    optimizer = sf.StackelbergAdamW(
        layer.parameters(), lr=0.1, constraint=sf.L2Ball(0.1), max_grad_norm=1.0
    )
    kept = whole(layer.weight.detach()).clone()
    get_optimizer_state_dict(layer, optimizer)
    assert torch.equal(whole(layer.weight.detach()), kept)
    assert all(int(entry["step"]) == 0 for entry in optimizer.state.values())


def test_a_checkpoint_before_the_first_step(ranks: Ranks) -> None:
    """Also where a rank has no elements."""
    ranks(2, _asks_for_state)
