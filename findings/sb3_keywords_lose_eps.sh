#!/usr/bin/env bash
# stable-baselines3 2.9.2, torch 2.13.0: any `optimizer_kwargs`, also for torch's own Adam, take away the eps=1e-5 of PPO and A2C policies.
#
# Guess before running: the policy's default eps=1e-5, which the documentation gives a reason for, is what the user's
# keywords are merged into; only an `eps` among them replaces it.
# Seen: the default is set only where `optimizer_kwargs` is None and the class is exactly torch.optim.Adam. With
# {"weight_decay": 0.0}, which changes nothing, eps is torch's 1e-8; so it is with any subclass of Adam.
#
# Who is hit: whoever passes another optimizer or one harmless keyword, and compares returns. Pass eps=1e-5 too
# (docs/integrations.md, stable-baselines3).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q torch==2.13.0 stable-baselines3==2.9.2 gymnasium==1.4.0 2>pip.log || {
    cat pip.log
    exit 2
}
cat >eps.py <<'CODE'
import torch
from stable_baselines3 import PPO


class Same(torch.optim.Adam):
    """torch's Adam by another name."""


def eps(**how):
    model = PPO("MlpPolicy", "CartPole-v1", policy_kwargs=how, device="cpu")
    return model.policy.optimizer.param_groups[0]["eps"]


print("nothing given:", eps())
print("weight_decay=0:", eps(optimizer_kwargs={"weight_decay": 0.0}))
print("a subclass of Adam:", eps(optimizer_class=Same))
CODE
env/bin/python eps.py 2>log | tee found || { cat log; exit 2; }
cat >expected <<'TEXT'
nothing given: 1e-05
weight_decay=0: 1e-08
a subclass of Adam: 1e-08
TEXT
cmp -s expected found || { echo "CHANGED: expected"; cat expected; exit 1; }
echo "as found: a keyword that changes nothing changes eps"
