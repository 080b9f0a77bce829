#!/usr/bin/env bash
# timm 1.0.31, torch 2.13.0: `ModelEmaV3` (V2 and the first one too) moves a weight that has n names n times an update.
#
# Guess before running: a tied weight is one parameter and one average; it moves by 1 - decay in an update, as every other weight.
# Seen: the averages are walked by `state_dict()`, which lists a tensor under each of its names, and so each name moves it once
# more. With decay 0.9, where weights jump from 0 to 1, one update brings a weight to 0.1, the embedding that is also the head
# to 0.19, and a layer that is called four times under four names to 0.34 (its decay is 0.9^4). Averages of one model look
# back over different spans, and nothing tells. `exclude_buffers=True`, which walks the parameters, has it right, and so has
# torch's `AveragedModel`.
#
# Who is hit: language models with tied embeddings and models that share layers, under timm's averages. Here the average belongs to
# the parameter, so it moves once (docs/training_step.md, "Averages as a module").
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q torch==2.13.0 numpy 2>pip.log || { cat pip.log; exit 2; }
env/bin/python -m pip install -q --no-deps timm==1.0.31 2>pip.log || { cat pip.log; exit 2; }
cat >tied.py <<'CODE'
import importlib.util
import pathlib

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

# the module alone, which needs nothing but torch: the whole package would want torchvision of the same build
package = pathlib.Path(importlib.util.find_spec("timm").origin).parent
spec = importlib.util.spec_from_file_location("model_ema", package / "utils" / "model_ema.py")
timm = importlib.util.module_from_spec(spec)
spec.loader.exec_module(timm)


class Language(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 3)
        self.norm = torch.nn.Linear(3, 3, bias=False)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(3, 3, bias=False)] * 4)
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


@torch.no_grad()
def fill(model, value):
    for param in model.parameters():
        param.fill_(value)


def moved(make):
    """The averages of a weight of its own, a tied one and a shared layer, after a jump from 0 to 1 and one update."""
    model = Language()
    fill(model, 0.0)
    average = make(model)
    torchs = isinstance(average, AveragedModel)
    if torchs:
        average.update_parameters(model)  # its first update copies
    fill(model, 1.0)
    (average.update_parameters if torchs else average.update)(model)
    found = average.ema if hasattr(average, "ema") else average.module
    assert found.head.weight is found.embedding.weight and found.blocks[0] is found.blocks[3]
    return [round(weight[0, 0].item(), 4) for weight in (found.norm.weight, found.head.weight, found.blocks[0].weight)]


for name, make in {
    "ModelEma": lambda model: timm.ModelEma(model, decay=0.9),
    "ModelEmaV2": lambda model: timm.ModelEmaV2(model, decay=0.9),
    "ModelEmaV3": lambda model: timm.ModelEmaV3(model, decay=0.9),
    "ModelEmaV3, foreach=False": lambda model: timm.ModelEmaV3(model, decay=0.9, foreach=False),
    "ModelEmaV3, exclude_buffers=True": lambda model: timm.ModelEmaV3(model, decay=0.9, exclude_buffers=True),
    "AveragedModel": lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
}.items():
    print(f"{name}: {moved(make)}")
CODE
env/bin/python tied.py 2>log | tee found || { cat log; exit 2; }
cat >expected <<'TEXT'
ModelEma: [0.1, 0.19, 0.3439]
ModelEmaV2: [0.1, 0.19, 0.3439]
ModelEmaV3: [0.1, 0.19, 0.3439]
ModelEmaV3, foreach=False: [0.1, 0.19, 0.3439]
ModelEmaV3, exclude_buffers=True: [0.1, 0.1, 0.1]
AveragedModel: [0.1, 0.1, 0.1]
TEXT
cmp -s expected found || { echo "CHANGED: expected"; cat expected; exit 1; }
echo "as found: each name of a weight moves its average"
