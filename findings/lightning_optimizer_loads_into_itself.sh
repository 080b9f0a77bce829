#!/usr/bin/env bash
# lightning 2.6.6: `self.optimizers().load_state_dict(...)` loads into the wrapper and leaves the optimizer as it was.
#
# Guess before running: `LightningOptimizer` hands the state dict on, as it hands on `step`; Fabric's wrapper does so. Or it
# raises.
# Seen: the wrapper, whose class is derived from the optimizer's at run time, inherits the method and runs it on itself. Asked
# afterwards, it shows the loaded rate and count; the optimizer that `step()` steps has the old ones, and nothing is raised.
#
# Who is hit: modules with manual optimization that load an optimizer's state themselves. The trainer's own checkpoints go another
# way. Here wrapper and optimizer share one object for state and settings (stackelberg_fused/optimizers/shared.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q torch==2.13.0 numpy lightning==2.6.6 2>pip.log || {
    cat pip.log
    exit 2
}
cat >load.py <<'CODE'
import copy

import lightning
import torch


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, index):
        wrapper = self.optimizers()
        self.weight.sum().backward()
        wrapper.step()
        state = copy.deepcopy(wrapper.state_dict())
        state["param_groups"][0]["lr"] = 7.0
        wrapper.load_state_dict(state)
        for name, found in ("wrapper", wrapper), ("optimizer", wrapper.optimizer):
            print(f"{name}: lr {found.param_groups[0]['lr']}")

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=0.5, momentum=0.9)


trainer = lightning.Trainer(
    accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Model(), torch.utils.data.DataLoader(torch.zeros(1), batch_size=1))
CODE
env/bin/python load.py 2>log | grep ": lr " | tee found || { cat log; exit 2; }
printf 'wrapper: lr 7.0\noptimizer: lr 0.5\n' >expected
cmp -s expected found || { echo "CHANGED: expected"; cat expected; exit 1; }
echo "as found: the state dict went into the wrapper alone"
