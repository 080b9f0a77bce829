"""The follower's objective f(theta, .) at fixed features: squared error or cross entropy of a linear head.

f(theta, w) = loss(head(features), targets) + ridge / 2 * |w|^2. `loss` is torch's mean over the batch. w holds all
parameters of the head including the bias, so that f is strongly convex in w with modulus `ridge`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..groups.rules import is_number

LOSSES = ("mse", "cross_entropy")


def loss_name(loss: Any) -> str:
    """Return "mse" or "cross_entropy".

    Args:
        loss: one of these names, or torch's function or module of it with default options.

    Raises:
        ValueError: any other loss: no best response is known for it.
    """
    names = {
        "mse": (F.mse_loss, nn.MSELoss),
        "cross_entropy": (F.cross_entropy, nn.CrossEntropyLoss),
    }
    for name, (function, module) in names.items():
        if loss == name or loss is function:
            return name
        if type(loss) is module:
            default = module()
            same = all(getattr(loss, key) == getattr(default, key) for key in module.__constants__)
            if same and getattr(loss, "weight", None) is None:
                return name
    raise ValueError(
        f"no best response is known for loss {loss!r}: expected 'mse' or 'cross_entropy', or "
        "torch.nn.functional's mse_loss or cross_entropy without options"
    )


def linear_head(head: Any) -> nn.Linear:
    """Return the linear layer inside a head: the head itself, or the module in a DDP or torch.compile wrapper.

    Raises:
        TypeError: the head is not an `nn.Linear`, or its weight is parametrized.
    """
    bare = head.module if isinstance(head, DistributedDataParallel) else head
    bare = getattr(bare, "_orig_mod", bare)  # torch.compile's wrapper
    if not isinstance(bare, nn.Linear) or type(bare).forward is not nn.Linear.forward:
        raise TypeError(
            f"a best response is known for a head that is an nn.Linear, got {type(head).__name__}"
        )
    if not isinstance(bare._parameters.get("weight"), nn.Parameter):
        raise TypeError("a best response is not known for a head whose weight is parametrized")
    return bare


def check_ridge(ridge: Any, needed_for: str = "") -> float:
    """Return the ridge as a float.

    Args:
        ridge: a finite number >= 0.
        needed_for: the computation that needs ridge > 0, for the message; empty if none does.

    Raises:
        TypeError, ValueError: `ridge` is no such number.
    """
    if not is_number(ridge):
        raise TypeError(f"ridge must be a number, got {ridge!r}")
    if not 0.0 <= float(ridge) < math.inf:
        raise ValueError(f"ridge must be finite and >= 0, got {ridge}")
    if needed_for and ridge == 0:
        raise ValueError(f"{needed_for} needs a ridge > 0")
    return float(ridge)


@dataclass(frozen=True)
class FollowerObjective:
    """f as a function of the head's parameters, in float64 on the features' device.

    The head's parameters form one matrix W [inputs + 1, outputs], whose last row is the bias: outputs = rows @ W. A
    head without a bias has no last row.

    Attributes:
        name: "mse" or "cross_entropy".
        rows: float64 [n, inputs + 1]: the features, and a column of ones if the head has a bias.
        targets: float64 [n, outputs]: the values to predict, or class probabilities.
        ridge: >= 0.
    """

    name: str
    rows: Tensor
    targets: Tensor
    ridge: float

    @classmethod
    def of(
        cls, loss: Any, head: nn.Linear, features: Tensor, targets: Tensor, ridge: float
    ) -> FollowerObjective:
        """Check features and targets against a head, and build the objective.

        Args:
            loss: as in `loss_name`.
            head: the linear layer.
            features: floating point [..., inputs]; with their graph, if f is to be differentiated in theta.
            targets: [..., outputs], or classes [...] for "cross_entropy". Rows of class -100 are left out.
            ridge: >= 0.

        Raises:
            ValueError, TypeError: loss, features and targets do not fit the head, or are not finite.
        """
        name = loss_name(loss)
        if name == "cross_entropy" and not isinstance(loss, str) and features.dim() > 2:
            raise ValueError(
                f"torch's cross_entropy takes classes in dimension 1, a head puts them in the last, and features are "
                f"{tuple(features.shape)}: flatten features and targets to rows, or pass loss='cross_entropy', which "
                "takes them in the last"
            )
        if not features.is_floating_point() or features.shape[-1:] != (head.in_features,):
            raise ValueError(
                f"features must be floating point [..., {head.in_features}], got {features.dtype} "
                f"{tuple(features.shape)}"
            )
        rows = features.to(torch.float64).reshape(-1, head.in_features)
        outputs = (*features.shape[:-1], head.out_features)
        targets = targets.detach().to(features.device)
        if name == "cross_entropy" and not targets.is_floating_point():
            if targets.shape != outputs[:-1]:
                raise ValueError(
                    f"targets must be classes {outputs[:-1]}, got shape {tuple(targets.shape)}"
                )
            # to int64 before the comparison with -100, because uint8 would take class 156 for it
            classes = targets.reshape(-1).long()
            rows, classes = rows[classes != -100], classes[classes != -100]
            if len(classes) and not (
                int(classes.min()) >= 0 and int(classes.max()) < head.out_features
            ):
                raise ValueError(f"targets must be classes below {head.out_features}")
            expected = F.one_hot(classes, head.out_features).to(torch.float64)
        else:
            if tuple(targets.shape) != outputs:
                raise ValueError(f"targets must be {outputs}, got shape {tuple(targets.shape)}")
            expected = targets.to(torch.float64).reshape(-1, head.out_features)
        if not len(rows):
            raise ValueError("there are no rows to respond to")
        for argument, values in (("features", rows), ("targets", expected)):
            if not bool(values.isfinite().all()):
                raise ValueError(f"{argument} are not finite: has training diverged?")
        if head.bias is not None:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
        return cls(name, rows, expected, ridge)

    def matrix(self, head: nn.Linear) -> Tensor:
        """Return a head's parameters as W, float64.

        Raises:
            ValueError: a parameter is not finite.
        """
        parts = [head.weight.detach().t()]
        if head.bias is not None:
            parts.append(head.bias.detach().view(1, -1))
        w = torch.cat(parts).to(self.rows)
        if not bool(w.isfinite().all()):
            raise ValueError("the head's parameters are not finite: has training diverged?")
        return w

    def detached(self) -> FollowerObjective:
        """Return the same objective without the graph of the features."""
        return replace(self, rows=self.rows.detach())

    def value(self, w: Tensor) -> Tensor:
        """Return f at W, []; differentiable in W and in the features."""
        outputs = self.rows @ w
        loss = F.mse_loss if self.name == "mse" else F.cross_entropy
        return loss(outputs, self.targets) + self.ridge / 2 * w.square().sum()

    def gradient(self, w: Tensor) -> Tensor:
        """Return grad_w f at W, of the shape of W."""
        outputs = self.rows @ w
        if self.name == "mse":
            residual = (outputs - self.targets) * (2.0 / outputs.numel())
        else:
            weight = self.targets.sum(1, keepdim=True)
            residual = (outputs.softmax(1) * weight - self.targets) / len(outputs)
        return self.rows.t() @ residual + self.ridge * w

    def hessian_product(self, w: Tensor, direction: Tensor) -> Tensor:
        """Return f_ww at W times a direction; `direction` and the result have the shape of W."""
        change = self.rows @ direction
        if self.name == "mse":
            change = change * (2.0 / change.numel())
        else:
            p = (self.rows @ w).softmax(1)
            weight = self.targets.sum(1, keepdim=True) / len(p)
            change = (p * change - p * (p * change).sum(1, keepdim=True)) * weight
        return self.rows.t() @ change + self.ridge * direction
