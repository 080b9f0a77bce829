"""stable-baselines3 with our optimizer as the `optimizer_class` of a policy, beside torch's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from beside_torch import assert_close_weights, assert_same_run

import stackelberg_fused as sf

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("lightning"),
    pytest.mark.filterwarnings("ignore::UserWarning:stable_baselines3"),
]


@pytest.fixture(scope="module")
def ppo() -> Any:
    pytest.importorskip("gymnasium")
    return pytest.importorskip("stable_baselines3").PPO


def _agent(algorithm: Any, kind: Any, **policy: Any) -> Any:
    return algorithm(
        "MlpPolicy", "CartPole-v1", seed=0, device="cpu", n_steps=32, batch_size=16, n_epochs=2,
        policy_kwargs={"optimizer_class": kind, "net_arch": [8], **policy},
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_as_with_torchs(ppo: Any, backend: str) -> None:
    ours, torchs = (
        _agent(ppo, kind, optimizer_kwargs={"eps": 1e-5}).learn(64)
        for kind in (partial(sf.StackelbergAdam, backend=backend), torch.optim.Adam)
    )
    assert isinstance(ours.policy.optimizer, sf.StackelbergAdam)
    assert_close_weights(ours.policy, torchs.policy)


def test_a_dqn_as_with_torchs(ppo: Any) -> None:
    import stable_baselines3

    def agent(kind: Any) -> Any:
        return stable_baselines3.DQN(
            "MlpPolicy", "CartPole-v1", seed=0, device="cpu", learning_starts=20, batch_size=8,
            policy_kwargs={"optimizer_class": kind, "net_arch": [8]},
        ).learn(60)  # fmt: skip

    assert_close_weights(agent(sf.StackelbergAdam).policy, agent(torch.optim.Adam).policy)


def test_eps_is_set_for_torchs_adam_alone(ppo: Any) -> None:
    """SB3 puts 1e-5 into `torch.optim.Adam` and no other class, if `optimizer_kwargs` is not given: say it yourself."""

    def eps(kind: Any, **policy: Any) -> float:
        return _agent(ppo, kind, **policy).policy.optimizer.param_groups[0]["eps"]

    assert eps(torch.optim.Adam) == 1e-5
    assert eps(torch.optim.Adam, optimizer_kwargs={"weight_decay": 0.0}) == 1e-8
    assert eps(torch.optim.AdamW) == eps(sf.StackelbergAdam) == 1e-8
    assert eps(sf.StackelbergAdam, optimizer_kwargs={"eps": 1e-5}) == 1e-5


def test_saved_and_loaded(ppo: Any, tmp_path: Path) -> None:
    agent = _agent(ppo, sf.StackelbergAdam, optimizer_kwargs={"eps": 1e-5}).learn(64)
    agent.save(tmp_path / "agent")
    loaded = ppo.load(tmp_path / "agent")
    assert isinstance(loaded.policy.optimizer, sf.StackelbergAdam)
    assert_same_run(loaded.policy, loaded.policy.optimizer, agent.policy, agent.policy.optimizer)


def _two_rates(params: Any, lr: float) -> Any:
    """An optimizer for a policy in which the layer that values are read from is ten times faster."""
    params = list(params)
    groups = [{"params": params[:-2]}, {"params": params[-2:], "lr": 10 * lr, "lr_scale": 10.0}]
    return sf.StackelbergAdam(groups, lr=lr, eps=1e-5)


def _ratio(agent: Any) -> float:
    rates = [group["lr"] for group in agent.policy.optimizer.param_groups]
    return rates[1] / rates[0]


def test_all_groups_get_one_rate(ppo: Any) -> None:
    """SB3 writes its learning rate into every group at each `train()`: rates by group are lost."""
    agent = _agent(ppo, _two_rates)
    assert _ratio(agent) == pytest.approx(10.0)
    agent.learn(32)
    assert _ratio(agent) == 1.0


def test_two_rates_that_stay(ppo: Any) -> None:
    """The way that docs/integrations.md shows: an algorithm that writes a rate for each group."""

    class TwoRates(ppo):
        def _update_learning_rate(self, optimizers: Any) -> None:
            rate = self.lr_schedule(self._current_progress_remaining)
            for group in self.policy.optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)

    assert _ratio(_agent(TwoRates, _two_rates).learn(64)) == pytest.approx(10.0)
