#!/usr/bin/env bash
# Optuna 5.0.0: a journal file whose last line was cut off, as by a process that died while it wrote, opens without a word, and the
# first write of the next process makes it unreadable for good.
#
# Guess before running: a journal is there to outlive crashes. A reader drops a last line that is not whole (it does), and a writer
# begins on a new line. At worst one trial is lost.
# Seen: the study opens with its finished trials. The next operation is appended to what is left of the cut line, on the same
# line; from then on every read raises JSONDecodeError, also in a new process. All trials are there, and none can be loaded.
#
# Who is hit: who resumes a search with JournalStorage(JournalFileBackend(...)) after a kill, an out-of-memory or a full disk: the
# resumed process dies at its first write, and takes the file with it. Cutting the file at its last line break before opening it
# mends it, if nothing was written since. `find_rates` does so (stackelberg_fused/game/search_file.py, tests/game/test_search_file.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q optuna==5.0.0 2>pip.log || {
    cat pip.log
    exit 2
}
cat >study.py <<'CODE'
import json
import sys
from pathlib import Path

import optuna
from optuna.storages.journal import JournalFileBackend, JournalStorage

optuna.logging.set_verbosity(optuna.logging.ERROR)
step, path = sys.argv[1], Path(sys.argv[2])


def resumed():
    storage = JournalStorage(JournalFileBackend(str(path)))
    return optuna.create_study(study_name="a search", storage=storage, load_if_exists=True)


def objective(trial):
    return trial.suggest_float("x", 0, 1)


if step == "first":
    resumed().optimize(objective, n_trials=3)
elif step == "cut":
    path.write_bytes(path.read_bytes()[:-20])  # what a kill in the middle of a write leaves
elif step == "mend":
    path.write_bytes(path.read_bytes().rpartition(b"\n")[0] + b"\n")
else:
    try:
        study = resumed()
        print(f"opened with {len(study.trials)} trials;", end=" ")
        study.optimize(objective, n_trials=1)
        print(f"went on to {len(study.trials)}")
    except json.JSONDecodeError:
        print("JSONDecodeError")
CODE
python=env/bin/python
for file in a.log b.log; do
    "$python" study.py first "$file"
    "$python" study.py cut "$file"
done
once=$("$python" study.py resume a.log)
again=$("$python" study.py resume a.log)
"$python" study.py mend b.log
mended=$("$python" study.py resume b.log)
echo "after the cut: $once"
echo "once more: $again"
echo "cut at the last line break first: $mended"
[[ $once == "opened with 3 trials; JSONDecodeError" && $again == "JSONDecodeError" && $mended == "opened with 3 trials; went on to 4" ]] || {
    echo "CHANGED"
    exit 1
}
"$python" -c 'import optuna; print("optuna", optuna.__version__)'
