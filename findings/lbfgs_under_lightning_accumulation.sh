#!/usr/bin/env bash
# lightning 2.6.6: with `accumulate_grad_batches`, each further call of an optimizer's closure adds a gradient to the last.
#
# Guess before running: an optimizer that calls its closure several times a step (LBFGS, a line search, SAM) sees the same
# gradient each time the weights are the same: that of all accumulated micro-batches, or at least that of the last one.
# Seen: with 4 micro-batches of gradient 1 (a mean of 1), three calls at unchanged weights find 1, 1.25 and 1.5. The first call
# is right; every further one adds a quarter, because the closure of the last micro-batch does not clear gradients while they
# accumulate. Without accumulation all calls find 1. Nothing is raised or warned of; the loss that is returned is the
# last micro-batch's alone.
#
# Who is hit: LBFGS, whose directions are built from differences of such gradients, and any optimizer with a second evaluation.
# Here mode="alternating", which evaluates twice, refuses gradients that were accumulated before.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q torch==2.13.0 numpy lightning==2.6.6 2>pip.log || {
    cat pip.log
    exit 2
}
cat >calls.py <<'CODE'
import lightning
import torch


class ThreeCalls(torch.optim.SGD):
    """Evaluates three times and leaves the weights as they are."""

    def step(self, closure):
        (weight,) = self.param_groups[0]["params"]
        with torch.enable_grad():
            for _ in range(3):
                closure()
                found.append(weight.grad.item())


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, index):
        return self.weight * 1.0

    def configure_optimizers(self):
        return ThreeCalls([self.weight])


for count in (1, 4):
    found = []
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=1, accumulate_grad_batches=count, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(Model(), torch.utils.data.DataLoader(torch.zeros(4), batch_size=1))
    print(f"accumulate_grad_batches={count}: {found}")
CODE
env/bin/python calls.py 2>log | grep accumulate_grad | tee found || { cat log; exit 2; }
cat >expected <<'TEXT'
accumulate_grad_batches=1: [1.0, 1.0, 1.0]
accumulate_grad_batches=4: [1.0, 1.25, 1.5]
TEXT
cmp -s expected found || { echo "CHANGED: expected"; cat expected; exit 1; }
echo "as found: each further call of the closure adds the last micro-batch once more"
