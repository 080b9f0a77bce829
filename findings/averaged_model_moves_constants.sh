#!/usr/bin/env bash
# torch 2.13.0, lightning 2.6.6: an exponential average over buffers lowers constant integers by one: position 11 becomes 10.
#
# Guess before running: integer and boolean buffers are copied, as an average of them has no meaning; or, if they are
# averaged, a buffer that never changes stays what it is, because the average of a number with itself is that number.
# Seen: `AveragedModel(use_buffers=True)` computes `n * decay + n * (1 - decay)` in float32 and writes it into the integer
# tensor, which cuts it off. Where it rounds below n, n - 1 is what remains from then on. It goes by the decay: with 0.9 it is
# 147 of the numbers below 512, with 0.95 95, with 0.9995 160, with 0.9999 99, and with 0.99 and 0.999 none. So a model that
# has not changed at all gives other results than its average. Lightning's `EMAWeightAveraging` averages buffers unless told
# otherwise, and leaves the wrong positions in the model after `fit`. Its `WeightAveraging()`, the plain mean, raises a
# RuntimeError in the second step of a model that has a boolean buffer.
#
# Who is hit: averages of models with index buffers: position_ids of BERT and its relatives, relative_position_index of Swin.
# Ours averages buffers of floating point alone (docs/training_step.md, "Averages as a module").
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q torch==2.13.0 numpy lightning==2.6.6 2>pip.log || {
    cat pip.log
    exit 2
}
cat >average.py <<'CODE'
import logging
import warnings

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Positions(pl.LightningModule):
    """Adds a vector by position to its input; no step changes it, for the rate is zero."""

    def __init__(self, masked=False):
        super().__init__()
        self.table = torch.nn.Embedding(512, 2)
        self.register_buffer("position_ids", torch.arange(512))
        if masked:
            self.register_buffer("mask", torch.ones(512, dtype=torch.bool))

    def forward(self, x):
        return x + self.table(self.position_ids)

    def training_step(self, batch, index):
        return self(batch[0]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def lowered(positions):
    low = (positions != torch.arange(512)).nonzero().flatten()
    return f"{len(low)} lowered {low[:3].tolist()}"


torch.manual_seed(0)
model = Positions()
for decay in (0.9, 0.95, 0.99, 0.999, 0.9995, 0.9999):
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    for _ in range(10):
        averaged.update_parameters(model)
    x = torch.zeros(512, 2)
    same = torch.equal(averaged(x), model(x))
    print(f"AveragedModel, {decay}: {lowered(averaged.module.position_ids)}, same output: {same}")


def fit(model, callback):
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(6, 512, 2)))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[callback], **quiet).fit(model, data)
    return model


print(f"EMAWeightAveraging, 0.9999: {lowered(fit(Positions(), EMAWeightAveraging(decay=0.9999)).position_ids)}")
print(f"and use_buffers=False: {lowered(fit(Positions(), EMAWeightAveraging(decay=0.9999, use_buffers=False)).position_ids)}")
try:
    fit(Positions(masked=True), WeightAveraging())
    print("WeightAveraging, boolean buffer: no error")
except RuntimeError as error:
    print(f"WeightAveraging, boolean buffer: {type(error).__name__}")
CODE
env/bin/python average.py 2>log | tee found || { cat log; exit 2; }
cat >expected <<'TEXT'
AveragedModel, 0.9: 147 lowered [3, 6, 7], same output: False
AveragedModel, 0.95: 95 lowered [13, 21, 26], same output: False
AveragedModel, 0.99: 0 lowered [], same output: True
AveragedModel, 0.999: 0 lowered [], same output: True
AveragedModel, 0.9995: 160 lowered [3, 6, 12], same output: False
AveragedModel, 0.9999: 99 lowered [11, 22, 29], same output: False
EMAWeightAveraging, 0.9999: 99 lowered [11, 22, 29]
and use_buffers=False: 0 lowered []
WeightAveraging, boolean buffer: RuntimeError
TEXT
cmp -s expected found || { echo "CHANGED: expected"; cat expected; exit 1; }
echo "as found: averages of constants are other numbers"
