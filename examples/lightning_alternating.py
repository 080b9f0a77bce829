"""Alternating steps in Lightning: the head moves first, then the body at the head that has moved, in manual
optimization.

Needs: pip install lightning scikit-learn
Run: python examples/lightning_alternating.py
"""

import argparse
import logging

import lightning
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import stackelberg_fused as sf


class Digits(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = sf.split_body_head(self, head="head")
        return sf.StackelbergAdamW(groups, lr=2e-3, head_lr_ratio=5.0, ema_decay=0.99)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
        optimizer, (images, labels) = self.optimizers(), batch
        features = self.body(images)
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.head(features.detach()), labels))
        optimizer.step(role="head")
        optimizer.zero_grad()
        loss = F.cross_entropy(self.head(features), labels)
        self.manual_backward(loss)
        # Lightning counts each step(): global_step is twice the batches
        optimizer.step(role="body")
        self.log("loss", loss)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
        images, labels = batch
        accuracy = (self.head(self.body(images)).argmax(1) == labels).float().mean()
        self.log("accuracy", accuracy, prog_bar=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    epochs = parser.parse_args().epochs
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    lightning.seed_everything(0, verbose=False)
    found = load_digits()
    data = TensorDataset(torch.tensor(found.data).float() / 16, torch.tensor(found.target))
    train, held_out = random_split(data, [1500, len(data) - 1500])
    model = Digits()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(train, 64, shuffle=True), DataLoader(held_out, 500))
    optimizer = model.optimizers().optimizer
    (last,) = trainer.validate(model, DataLoader(held_out, 500), verbose=False)
    with optimizer.ema_weights():
        (averaged,) = trainer.validate(model, DataLoader(held_out, 500), verbose=False)
    print(f"{trainer.global_step} steps, accuracy {last['accuracy']:.3f}")
    print(f"with averaged weights {averaged['accuracy']:.3f}")


if __name__ == "__main__":
    main()
