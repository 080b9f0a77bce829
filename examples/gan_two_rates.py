"""A GAN on a ring of eight Gaussians with two time scales (TTUR, Heusel et al. 2017, arXiv 1706.08500): the
generator is the slow body, the discriminator the fast head, both in one optimizer.

Run: python examples/gan_two_rates.py
"""

import argparse
import math

import torch
import torch.nn.functional as F
from torch import nn

import stackelberg_fused as sf

MODES, RADIUS, SPREAD = 8, 2.0, 0.05
R1 = 0.1


def real(count: int) -> torch.Tensor:
    angle = torch.randint(MODES, (count,)) * (2 * math.pi / MODES)
    return RADIUS * torch.stack([angle.cos(), angle.sin()], 1) + SPREAD * torch.randn(count, 2)


def mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs)
    )


def modes_found(points: torch.Tensor) -> int:
    """Count the Gaussians that at least one point in fifty lies near."""
    angle = torch.arange(MODES) * (2 * math.pi / MODES)
    centres = RADIUS * torch.stack([angle.cos(), angle.sin()], 1)
    distance, nearest = torch.cdist(points, centres).min(1)
    near = torch.bincount(nearest[distance < 6 * SPREAD], minlength=MODES)
    return int((near >= len(points) // 50).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument(
        "--ratio", type=float, default=4.0, help="discriminator's rate over the generator's"
    )
    args = parser.parse_args()
    torch.manual_seed(0)
    generator, discriminator = mlp(8, 2), mlp(2, 1)
    groups = [
        {"params": generator.parameters(), "role": "body"},
        {"params": discriminator.parameters(), "role": "head"},
    ]
    optimizer = sf.StackelbergAdam(
        groups, lr=5e-4, head_lr_ratio=args.ratio, betas=(0.5, 0.99), ema_decay={"body": 0.995}
    )
    for step in range(1, args.steps + 1):
        fake = generator(torch.randn(256, 8))
        # the head: tell the data from what the generator makes, which no gradient reaches here
        data = real(256).requires_grad_()
        verdict = discriminator(data)
        loss = F.softplus(-verdict).mean() + F.softplus(discriminator(fake.detach())).mean()
        # R1 (Mescheder et al. 2018, arXiv 1801.04406): flat where the data are
        (slope,) = torch.autograd.grad(verdict.sum(), data, create_graph=True)
        optimizer.zero_grad()
        (loss + R1 / 2 * slope.square().sum(1).mean()).backward()
        optimizer.step(role="head")
        # the body: be taken for the data by the head that has moved
        optimizer.zero_grad()
        F.softplus(-discriminator(fake)).mean().backward()
        optimizer.step(role="body")
        if step % (args.steps // 5) == 0:
            with torch.no_grad(), optimizer.ema_weights():
                found = modes_found(generator(torch.randn(2000, 8)))
            print(f"step {step}: discriminator's loss {loss.item():.3f}, {found} of {MODES} modes")


if __name__ == "__main__":
    main()
