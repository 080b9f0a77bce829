"""What a parameter has to become: in an optimizer of its own that sees only its steps, and by torch's step."""

from __future__ import annotations

import copy
from inspect import signature
from typing import Any

import torch
from cases import OURS, STATE, TORCHS
from checks import assert_close, assert_same_bits, plain
from near_reference import scales_of
from tensor_strategies import copy_in_layout
from tolerances import INTERPRETED_PARAM, STEP
from torch import Tensor, nn

from stackelberg_fused.groups.schemes import MASTER_STATE

# of these torch knows nothing; those that are None, False or 1 say nothing
_OURS_ALONE = ("cautious", "ema_decay", "constraint", "state_dtype", "master")


def torch_settings(group: dict[str, Any]) -> dict[str, Any]:
    """The settings of a group that torch's namesake takes."""
    known = signature(TORCHS[group["rule"]]).parameters
    return {
        k: v for k, v in group.items() if k in known and k not in ("params", "foreach", "fused")
    }


def torch_computes(group: dict[str, Any], dtype: torch.dtype) -> bool:
    """Tell whether torch's namesake computes what a group's settings say."""
    full = dtype in (torch.float32, torch.float64)
    return full and group.get("update_every", 1) == 1 and not any(map(group.get, _OURS_ALONE))


def is_alone(group: dict[str, Any]) -> bool:
    """Tell whether a parameter's steps depend on it and its settings alone: neither on others nor on its place."""
    constraint = group.get("constraint")
    return (
        group.get("update_every", 1) == 1
        and group.get("master") != "stochastic"
        and group.get("state_dtype") in (None, "float32")
        and (constraint is None or type(constraint).__name__ == "Box")
    )


def by_rows(value: Tensor, rows: list[int]) -> Tensor:
    """Rows of a tensor; zeros for -1."""
    fresh = torch.zeros_like(value[:1]) if len(value) else value.new_zeros((1, *value.shape[1:]))
    return torch.cat([value, fresh])[rows].contiguous()


class Twin:
    """A copy of one parameter in an optimizer of its own, compared to the bit.

    Args:
        of_torch: torch's optimizer, else ours on `cpu`.
        group: settings with the rule.
    """

    def __init__(self, param: Tensor, group: dict[str, Any], of_torch: bool) -> None:
        self.of_torch = of_torch
        self.param = nn.Parameter(copy_in_layout(param))
        if of_torch:
            torchs = TORCHS[group["rule"]]
            self.optimizer = torchs([self.param], **torch_settings(group), foreach=False)
        else:
            own = {**group, "params": [self.param], "role": "body"}
            self.optimizer = OURS["adamw"]([own], backend="cpu", flatten=False)

    def follows(self, group: dict[str, Any]) -> bool:
        """Tell whether this still computes what a group's settings say."""
        if not self.of_torch:
            return is_alone(group)
        # torch finds no maximum in the state of an Adam that had not kept one
        has_maximum = self.optimizer.param_groups[0].get("amsgrad") == group.get("amsgrad")
        return torch_computes(group, self.param.dtype) and has_maximum

    def edit(self, settings: dict[str, Any]) -> None:
        own = self.optimizer.param_groups[0]
        own.update({k: v for k, v in settings.items() if k in own})

    def step(self, grad: Tensor) -> None:
        self.param.grad = grad
        self.optimizer.step()
        self.param.grad = None

    def replace(self, rows: list[int]) -> None:
        """Go on with other rows; of torch's optimizer, the state is cut by hand."""
        old, self.param = self.param, nn.Parameter(by_rows(self.param.detach(), rows))
        if not self.of_torch:
            self.optimizer.replace(old, self.param, rows)
            return
        self.optimizer.param_groups[0]["params"][0] = self.param
        entry = self.optimizer.state.pop(old, {})
        moved = {n: v if n == "step" or v is None else by_rows(v, rows) for n, v in entry.items()}
        if moved:
            self.optimizer.state[self.param] = moved

    def save(self) -> Any:
        return self.param.detach().clone(), copy.deepcopy(self.optimizer.state_dict())

    def load(self, saved: Any) -> None:
        self.param.data.copy_(saved[0])
        self.optimizer.load_state_dict(copy.deepcopy(saved[1]))

    def check(self, param: Tensor, state: dict[str, Any], what: str) -> None:
        assert_same_bits(param, self.param, what)
        own = self.optimizer.state.get(self.param, {})
        for name in (*STATE, "ema"):
            if own.get(name) is not None:
                assert_same_bits(state[name], own[name], f"{what} {name}")
        # one of them may not have been looked at since the scheme was edited
        for name in {*MASTER_STATE.values()} & own.keys() & state.keys():
            assert_same_bits(state[name], own[name], f"{what} {name}")


class BeforeStep:
    """A parameter before a step, to compare it afterwards with torch's step from there, within the tolerances."""

    def __init__(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        self.old = plain(param)
        self.state = {n: plain(torch.as_tensor(v)) for n, v in state.items() if v is not None}
        self.group = {k: v for k, v in group.items() if k != "params"}
        self.grad = plain(param.grad)

    def check(self, param: Tensor, state: dict[str, Any], exact_fma: bool, what: str) -> None:
        q = nn.Parameter(self.old.clone())
        torchs = TORCHS[self.group["rule"]]([q], **torch_settings(self.group), foreach=False)
        known = {n: v.clone() for n, v in self.state.items() if n in (*STATE, "step")}
        if known and any(name in known for name in STATE):
            torchs.state[q].update(known)
        q.grad = self.grad.clone()
        torchs.step()
        expected = {n: v for n, v in torchs.state[q].items() if n in STATE and v is not None}
        expected["param"] = q.detach()
        if self.group["rule"] != "sgd":
            assert float(state["step"]) == float(torchs.state[q]["step"]), f"{what} step"
        expected["step"] = torch.as_tensor(state["step"])  # SGD of torch keeps none
        scales = scales_of(self.grad, self.group, self.old, self.state, expected, exact_fma)
        for name, scale in scales.items():
            is_param = name == "param"
            tolerance = INTERPRETED_PARAM if is_param and not exact_fma else STEP[name]
            actual = param.detach() if is_param else state[name]
            assert_close(actual, expected[name], scale, tolerance, f"{what} {name}")
