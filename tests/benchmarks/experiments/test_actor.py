"""Actor-critic: the losses and whom they move, one optimizer beside three Adams, what is counted, and the result."""

from __future__ import annotations

import copy
import json
import math
import re
from typing import Any

import pytest
import torch
from paths import EXPERIMENT_RESULTS, ROOT
from torch import Tensor
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform, TanhTransform

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from stackelberg_fused.benchmarks.experiments.actor import OURS, TIMED, TORCHS, ActorCritic, Arm
from stackelberg_fused.benchmarks.experiments.actor_networks import (
    DISCOUNT,
    TORQUE,
    Actor,
    Agent,
    Batch,
)
from stackelberg_fused.benchmarks.experiments.actor_optimizers import (
    DECAY,
    ActorCriticOptimizer,
    CriticsFirst,
    OneLaunch,
    OneLaunchByTurns,
    Rates,
    ThreeAdams,
    ThreeAdamsTogether,
    ThreeDefaultAdams,
)
from stackelberg_fused.benchmarks.experiments.actor_timing import count
from stackelberg_fused.benchmarks.experiments.actor_training import Replay, Size, train

pytestmark = pytest.mark.slow  # each part of it is a run

WIDTH, ROWS = 8, 16
RATES = Rates(3e-3, 1e-3, 2e-3)


class DefaultAdamsTogether(ThreeAdamsTogether):
    """With the operators that the reference backend calls too."""

    fused = None


def _agent() -> Agent:
    return Agent(WIDTH, torch.Generator().manual_seed(3))


def _batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(*(torch.randn(ROWS, *n, generator=generator) for n in ((3,), (1,), (), (3,))))


def _weights(optimizer: ActorCriticOptimizer) -> list[Tensor]:
    """Everything that moves: critics, actor, temperature and target networks."""
    optimizer.read_averages()
    agent, target = optimizer.agent, optimizer.target
    assert isinstance(target, torch.nn.Module)
    parts = *agent.critics.parameters(), *agent.actor.parameters(), agent.log_temperature
    return [p.detach() for p in (*parts, *target.parameters())]


def _trained(make: Any, updates: int = 7, **how: Any) -> list[Tensor]:
    optimizer = make(_agent(), RATES, **how)
    for number in range(updates):
        optimizer.update(_batch(number))
    return _weights(optimizer)


@pytest.mark.parametrize(
    "ours, torchs", [(OneLaunch, DefaultAdamsTogether), (CriticsFirst, ThreeDefaultAdams)]
)
def test_in_the_same_order_one_optimizer_is_three_adams_to_the_bit(ours: Any, torchs: Any) -> None:
    sides = _trained(ours, backend="reference"), _trained(torchs)
    assert all(torch.equal(a, b) for a, b in zip(*sides, strict=True))


@pytest.mark.parametrize(
    "ours, torchs", [(OneLaunch, ThreeAdamsTogether), (CriticsFirst, ThreeAdams)]
)
def test_in_one_kernel_it_is_three_fused_adams_to_roundings(ours: Any, torchs: Any) -> None:
    for a, b in zip(_trained(ours, backend="cpu"), _trained(torchs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_turns_of_the_optimizer_are_steps_of_a_role(backend: str) -> None:
    sides = [_trained(make, backend=backend) for make in (OneLaunch, OneLaunchByTurns)]
    assert all(torch.equal(a, b) for a, b in zip(*sides, strict=True))


def test_the_order_shows_where_the_actor_moves() -> None:
    """By other critics, and so at its second step: the first of Adam is one of signs."""
    for updates, same in ((3, True), (4, False)):
        together, first = (
            _trained(make, updates, backend="reference") for make in (OneLaunch, CriticsFirst)
        )
        actor = slice(12, 20)
        assert all(map(torch.equal, together[:12], first[:12]))
        assert all(map(torch.equal, together[actor], first[actor])) is same


@pytest.mark.parametrize("make", [*TIMED.values(), ThreeAdamsTogether])
def test_losses_move_only_their_own(make: Any) -> None:
    agent = _agent()
    optimizer = make(agent, RATES)
    parts = agent.critics.parameters(), agent.actor.parameters(), [agent.log_temperature]
    critics, actor, temperature = map(list, parts)
    seen = []

    def note(*_: Any) -> None:
        seen.append([[p.grad is not None for p in part] for part in (critics, actor, temperature)])

    optimizer.after_critics = optimizer.after_actor = note
    optimizer.update(_batch(0))
    assert seen[0] == seen[1] == [[True] * 12, [False] * 8, [False]]
    before = [None if p.grad is None else p.grad.clone() for p in critics]
    losses = agent.actor_losses(_batch(1))
    losses[0].backward(inputs=actor)
    for p, grad in zip(critics, before, strict=True):
        assert p.grad is not None
        assert grad is not None
        assert torch.equal(p.grad, grad)
    assert all(p.grad is not None for p in actor)
    assert temperature[0].grad is None


def test_actions_have_the_density_that_is_said() -> None:
    torch.manual_seed(0)
    actor, states, noise = Actor(WIDTH), torch.randn(ROWS, 3), torch.randn(ROWS, 1)
    actions, said = actor(states, noise)
    features = actor.body(states)
    log_std = -5.0 + 3.5 * (actor.log_std(features).tanh() + 1.0)
    normal = Normal(actor.mean(features), log_std.exp())
    squashing = [TanhTransform(cache_size=1), AffineTransform(0.0, TORQUE, cache_size=1)]
    expected = TransformedDistribution(normal, squashing).log_prob(actions).squeeze(1)
    torch.testing.assert_close(said, expected, rtol=1e-3, atol=1e-3)
    assert actions.abs().max() <= TORQUE
    torch.testing.assert_close(actor(states)[0], TORQUE * actor.mean(features).tanh())


def test_losses_by_their_definitions() -> None:
    agent, batch = _agent(), _batch(0)
    with torch.no_grad():
        agent.log_temperature.fill_(-1.0)
    state = agent._generator.get_state()
    found = agent.critics_loss(batch, agent.critics), *agent.actor_losses(batch)
    agent._generator.set_state(state)
    alpha = math.exp(-1.0)
    next_actions, density = agent.actor(batch.next_states, agent.noise(ROWS))
    value = torch.stack(agent.critics(batch.next_states, next_actions)).amin(0) - alpha * density
    wanted = batch.rewards + DISCOUNT * value
    errors = [q - wanted for q in agent.critics(batch.states, batch.actions)]
    torch.testing.assert_close(found[0], sum((e**2).mean() for e in errors))
    actions, density = agent.actor(batch.states, agent.noise(ROWS))
    value = torch.stack(agent.critics(batch.states, actions)).amin(0)
    torch.testing.assert_close(found[1], (alpha * density - value).mean())
    torch.testing.assert_close(found[2], -alpha * (density - 1.0).mean())


def test_target_networks_are_averages_of_the_critics() -> None:
    for make in (OneLaunch, ThreeAdams):
        optimizer = make(_agent(), RATES)
        optimizer.read_averages()
        expected = [w.clone() for w in _weights(optimizer)[:12]]
        for number in range(5):
            optimizer.update(_batch(number))
            for average, weight in zip(expected, optimizer.agent.critics.parameters(), strict=True):
                average.lerp_(weight.detach(), 1 - DECAY)
        for average, own in zip(expected, _weights(optimizer)[-12:], strict=True):
            torch.testing.assert_close(average, own)


def test_what_is_counted() -> None:
    found = {name: count(make) for name, make in TIMED.items()}
    assert {name: f["launches"] for name, f in found.items()} == {
        "one launch": 1,
        "one launch, update_every": 1,
        "critics first": 1.5,
        "three Adams, fused": 0,
        "three Adams, default": 0,
    }
    operators = {name: f["operators"] for name, f in found.items()}
    # reading averages and clearing gradients call none either
    assert [operators[name] for name in list(TIMED)[:3]] == [0, 0, 0]
    assert 4 <= operators["three Adams, fused"] < 30
    # some for each of 12 tensors in every update, and for 9 in every second one
    assert operators["three Adams, default"] > 5 * (12 + 9 / 2)


def test_replay_returns_what_was_stored() -> None:
    replay = Replay(9, torch.Generator())
    for k in range(5):
        replay.add(torch.full((3,), k), torch.tensor([k + 0.1]), k + 0.2, torch.full((3,), k + 0.3))
    batch = replay.sample(64)
    assert set(batch.states[:, 0].tolist()) == set(range(5))
    assert batch.rewards.shape == (64,)
    for part, more in (
        (batch.actions[:, 0], 0.1),
        (batch.rewards, 0.2),
        (batch.next_states[:, 2], 0.3),
    ):
        torch.testing.assert_close(part, batch.states[:, 1] + more)


def test_a_seed_means_the_same_start_and_the_same_actions_at_random() -> None:
    pytest.importorskip("gymnasium")
    size = Size(WIDTH, 8, 400, 390, 1, 1)
    found = []
    for make in (OneLaunch, ThreeAdams, OneLaunch):
        optimizer = make(_agent(), RATES)
        found.append(train(optimizer.agent, optimizer, 5, size))
    assert found[0] == found[2]
    assert found[0][0] == found[1][0]
    other = OneLaunch(_agent(), RATES)
    assert train(other.agent, other, 6, size)[0] != found[0][0]


def _result() -> Any:
    return json.loads((EXPERIMENT_RESULTS / "actor.json").read_text())["cells"]


def test_checks_can_fail() -> None:
    cells, experiment = _result(), ActorCritic(quick=False)
    before = experiment.check(cells)
    torchs = experiment.best_of_all(cells, TORCHS)
    same = Arm(OURS, torchs.ratio, torchs.exponent).key(0)
    for change in ({"launches": 3599}, {"last": -90_000.0}):
        other = copy.deepcopy(cells)
        other[same].update(change)
        assert len(experiment.check(other)) > len(before)
    other = copy.deepcopy(cells)
    other[Arm("critics first", torchs.ratio, torchs.exponent).key(0)]["returns"][2] -= 100.0
    assert any("first episodes differ" in line for line in experiment.check(other))
    other = copy.deepcopy(cells)
    other["count, one launch"]["operators"] = 100
    assert any(line.startswith("operators") for line in experiment.check(other))


def test_documented_figures_are_those_of_the_committed_run() -> None:
    cells, experiment = _result(), ActorCritic(quick=False)
    text = (ROOT / "docs" / "results.md").read_text()
    for table in experiment.tables(cells):
        for column in table.columns[1:]:
            for said in column.cells:
                assert str(said) in text, said
    for line in experiment.verdict(cells):
        gain = re.search(r"[+-]\d+\.\d \+- \d+\.\d", line)
        assert gain is not None, line
        assert gain[0] in text, line
