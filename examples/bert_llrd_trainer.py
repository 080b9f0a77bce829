"""A tiny BERT, fine-tuned by transformers' Trainer with rates that fall from layer to layer, evaluated with
averaged weights.

Needs: pip install transformers accelerate
Run: python examples/bert_llrd_trainer.py
"""

import argparse
import tempfile

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import stackelberg_fused as sf

VOCABULARY, LENGTH = 40, 24


class Majority(torch.utils.data.Dataset):
    """Sequences of tokens; the label says whether token 1 comes more often than token 2."""

    def __init__(self, count: int, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(3, VOCABULARY, (count, LENGTH), generator=random)
        places = torch.rand(count, LENGTH, generator=random)
        share = torch.rand(count, 1, generator=random) * 0.6
        self.ids[places < share] = 1
        self.ids[places > 0.7] = 2
        self.labels = ((self.ids == 1).sum(1) > (self.ids == 2).sum(1)).long()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


def accuracy(found: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    logits, labels = found
    return {"accuracy": float((logits.argmax(-1) == labels).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=float, default=3.0)
    args = parser.parse_args()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=96, max_position_embeddings=LENGTH, pad_token_id=0,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    groups = sf.layerwise_lr_decay(model, 0.8, lr=1e-3, no_decay=True)
    sf.describe(groups)
    optimizer = sf.StackelbergAdamW(groups, weight_decay=0.01, ema_decay=0.98)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=args.epochs, per_device_train_batch_size=32, max_grad_norm=1.0,
            lr_scheduler_type="linear", warmup_steps=10, logging_strategy="no", save_strategy="no",
            report_to="none", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        trainer = Trainer(
            model, arguments, train_dataset=Majority(2000, 0), eval_dataset=Majority(500, 1),
            compute_metrics=accuracy, optimizers=(optimizer, None),
        )  # fmt: skip
        trainer.train()
        last = trainer.evaluate()["eval_accuracy"]
        with optimizer.ema_weights():
            averaged = trainer.evaluate()["eval_accuracy"]
    print(f"accuracy {last:.3f}, with averaged weights {averaged:.3f}")


if __name__ == "__main__":
    main()
