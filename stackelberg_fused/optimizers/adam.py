"""StackelbergAdam and StackelbergAdamW."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from ..groups.param_groups import as_betas
from .base import StackelbergOptimizer
from .options import AdamOptions, AdamWOptions, Params, takes


class StackelbergAdam(StackelbergOptimizer):
    """Adam at any number of learning rates, one launch: a drop-in for `torch.optim.Adam`.

    Args:
        params: tensors, (name, tensor) pairs, or group dicts, as in torch. A group dict may carry
            `"role": "body" | "head"` (default body) and `"rule": "adam" | "adamw" | "sgd"` (default the class's own)
            beside the settings of that rule; what it leaves open comes from the arguments below (`lr`, `weight_decay`
            and `maximize` apply to every rule), else from the rule's torch namesake.
        lr: rate of the body groups; a number or a one-element tensor.
        betas, eps, weight_decay, amsgrad, maximize: as in torch (Kingma & Ba 2015; AMSGrad: Reddi et al. 2018).
        foreach: accepted for compatibility and ignored; every backend is one launch.
        fused: True: a `torch.amp.GradScaler` leaves unscaling and skipping to the step, in its launches; `.grad` keeps
            the scale. Otherwise the scaler does both, as with torch's optimizers. Nothing else depends on it.
        capturable: the step may be captured in a CUDA graph, after a first one that is not; a rate that is to change
            between replays has to be a tensor on the GPU, one for each group. Accepted on the CPU, without effect.
        differentiable: autograd through the step; reference backend only, parameters stay where they are.
        decoupled_weight_decay: decay weights as `StackelbergAdamW` does.
        head_lr_ratio: a head group without an `lr` of its own gets `lr * head_lr_ratio`; > 0. One that is given and
            that no head group takes draws a warning.
        backend: "auto", "cuda", "triton", "cpu" or "reference"; see `stackelberg_fused.backends()`.
        flatten: move parameters into arenas: their memory moves, the Parameter objects stay.
        max_grad_norm: clip gradients as `torch.nn.utils.clip_grad_norm_` does, in the step: to a norm over all players
            that are stepped, or `{"body": x, "head": y}`, one or both, each player on its own; `.grad` is not modified.
            Infinity only measures; see `last_step`. An attribute, which may be set between steps.
        ema_decay: keep the exponential moving average of the weights in the same launch (+8 B per parameter and step),
            in [0, 1]; by role as a dict, or per group. It begins with the weights before a parameter's first step, or
            those of now where it is turned on later or again, and goes on when the parameter moves; see
            `ema_weights()`.
        update_every: n: a group moves on every n-th step that it is part of, and waits on the others; by role as a
            dict, or per group. `{"body": 5}` lets the leader wait while the follower tracks it.
        update_every_grads: "latest": gradients of steps on which a group waits go by. "mean": they are summed up in the
            launch (+8 B per parameter), and it moves by the mean of all n, which `max_grad_norm` then is about; a
            gradient that is None counts as zero. Changing either begins a new round of n steps.
        grads: "gather" reads gradients where autograd left them. "flat" keeps them in one contiguous buffer for each
            role (`flat_grads`), for those who reduce them themselves; use the optimizer's `zero_grad`, not the model's,
            or `step(zero_grad=True)`, which clears them in the same launch. A parameter without a gradient then has
            one of zeros and is stepped. Not for DDP with `gradient_as_bucket_view`, which takes `.grad` for itself.
        mode: "simultaneous": both players move by gradients at the same point, in one launch. "alternating":
            `step(closure)` evaluates the closure, moves the head, evaluates it again at the new head and moves the
            body. It clears gradients before each evaluation, and refuses ones that were accumulated before. Where the
            model can be cut, `alternating_step` does the same with one forward pass of the body.
        release: "backward": parameters are updated as soon as their gradients are complete, some megabytes of them in a
            launch, and these gradients are freed at once; `step()` does what is left and counts as the step. So the
            gradients of a large model are never all in memory. See `accumulate()`. It does not go with `max_grad_norm`,
            `grads="flat"`, `capturable`, `differentiable` and gradient scalers. None: `step()` does it all.
        constraint: a set that parameters are projected onto after every update, before they are averaged: `Box` or
            `NonNegative`, inside the launch; `L2Ball` over a group or `Simplex` over rows, in one launch more; by role
            as a dict, or per group. The projection is Euclidean.
        master: what keeps the weights of bfloat16 and float16 parameters: None (rounded to nearest), "stochastic"
            (rounded by chance), "kahan", "split16" (bfloat16 and a 16-bit remainder: the float32 weight), "split8" (24
            bits of it) or "fp32"; by role as a dict, or per group. See docs/numerics.md.
        state_dtype: of moments: float32 (the default, also of 16-bit parameters), bfloat16, or "8bit" (codes in blocks
            of 32), stochastically rounded; by role as a dict, or per group.
        float32_state: "vectors": parameters of at most one dimension keep float32 state whatever `state_dtype` says
            (what FSDP1 flattened counts with the shape that it had); "none"; or a function of a parameter's name (empty
            if unknown) and the parameter that says so; by role as a dict, or per group.
        seed: of the random numbers of stochastic rounding; >= 0. It is saved in state dicts, and loaded.

    Raises:
        ValueError, TypeError: hyperparameters or parameters that cannot work; names the group or parameter.
        RuntimeError: an explicitly chosen backend cannot run on this machine, or `fused=True` comes with `foreach=True`
            or `differentiable=True`.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> groups = sf.split_body_head(model, head="2")
        >>> opt = sf.StackelbergAdam(groups, lr=1e-3, head_lr_ratio=10.0)
        >>> [group["lr"] for group in opt.param_groups]
        [0.001, 0.01]
        >>> model(torch.ones(3, 4)).square().mean().backward()
        >>> opt.step(zero_grad=True)
        >>> opt.last_step.launches
        1
    """

    @takes(AdamOptions)
    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        **options: Unpack[AdamOptions],
    ) -> None:
        rule = {
            "lr": lr,
            "betas": as_betas(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "rule": "adamw" if options.get("decoupled_weight_decay") else "adam",
        }
        super().__init__(params, rule, options, AdamOptions)


class StackelbergAdamW(StackelbergAdam):
    """AdamW (Loshchilov & Hutter 2019) at any number of learning rates, one launch: a drop-in for `torch.optim.AdamW`.

    Weight decay is decoupled, and 0.01 unless said otherwise.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize, foreach, fused, capturable: as in `StackelbergAdam`.
        differentiable, head_lr_ratio, backend, flatten, max_grad_norm, ema_decay: as in `StackelbergAdam`.
        update_every, update_every_grads, grads, mode, release, constraint, master: as in `StackelbergAdam`.
        state_dtype, float32_state, seed: as in `StackelbergAdam`.
        cautious: decay an element only where the update does not make it larger, that is where the number that is
            subtracted from it and the element itself do not have opposite signs (cautious weight decay, Chen et al.
            2025, arXiv 2510.12402). An element that is zero, or whose update is zero, decays. For groups with rule
            "adamw"; also per group, in which case any of the three optimizers takes it.

    Raises:
        ValueError, TypeError, RuntimeError: as `StackelbergAdam`.

    Example:
        >>> body, head = nn.Linear(4, 8), nn.Linear(8, 1)
        >>> groups = [
        ...     {"params": body.parameters(), "rule": "sgd", "momentum": 0.9},
        ...     {"params": head.parameters(), "role": "head"},
        ... ]
        >>> opt = sf.StackelbergAdamW(groups, lr=1e-3, head_lr_ratio=5.0)
        >>> [(group["rule"], group["lr"]) for group in opt.param_groups]
        [('sgd', 0.001), ('adamw', 0.005)]
    """

    @takes(AdamWOptions)
    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        **options: Unpack[AdamWOptions],
    ) -> None:
        rule = {
            "lr": lr,
            "betas": as_betas(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "decoupled_weight_decay": True,
            "rule": "adamw",
        }
        # not Adam's constructor, which takes other keywords
        StackelbergOptimizer.__init__(self, params, rule, options, AdamWOptions)
