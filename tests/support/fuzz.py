"""Random lives of optimizers for so many minutes, from new seeds: what `make fuzz` runs.

    make fuzz MINUTES=30
    make fuzz FUZZ_ARGS="--machine native --seed 123"    # that seed again, once

Ends with 1 at the first failure, which is shown shrunk, and with what repeats it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import traceback
import warnings
from pathlib import Path

import hypothesis
import torch
from hypothesis.stateful import run_state_machine_as_test
from optimizer_machine import COUNTS, MACHINES
from stackelberg_fused.benchmarks.machine import commit, hardware, versions

LIVES = 100  # of one seed


def live(machine: str, seed: int, shrink: bool) -> None:
    """Run the lives of one seed; raises what one of them raises, after minutes of shrinking."""
    generate = hypothesis.Phase.generate
    settings = hypothesis.settings(
        max_examples=LIVES,
        stateful_step_count=40,
        deadline=None,
        database=None,
        derandomize=False,
        phases=(generate, hypothesis.Phase.shrink) if shrink else (generate,),
        suppress_health_check=list(hypothesis.HealthCheck),
    )

    # the seed is kept at the class
    class Seeded(MACHINES[machine]):  # type: ignore[misc]
        pass

    run_state_machine_as_test(hypothesis.seed(seed)(Seeded), settings=settings)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--machine", choices=MACHINES, help="default: reference and native in turn")
    parser.add_argument("--seed", type=int, help="of one round, instead of new ones")
    parser.add_argument("--no-shrink", action="store_true", help="show a failure as it is found")
    parser.add_argument("--json", type=Path, help="write the counts there")
    return parser.parse_args()


def main() -> int:
    given = _arguments()
    machines = [given.machine] if given.machine else ["reference", "native"]
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*learning rate")
    start, rounds = time.monotonic(), 0
    while not rounds or (given.seed is None and time.monotonic() - start < 60 * given.minutes):
        machine = machines[rounds % len(machines)]
        seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
        try:
            live(machine, seed, not given.no_shrink)
        except BaseException:
            traceback.print_exc()
            print(f'again: make fuzz FUZZ_ARGS="--machine {machine} --seed {seed}"', flush=True)
            return 1
        rounds += 1
    minutes = (time.monotonic() - start) / 60
    print(f"{minutes:.1f} minutes, {rounds} seeds, no failure: " + str(dict(COUNTS)))
    if given.json is not None:
        found = {"minutes": round(minutes, 1), "seeds": rounds, "failures": 0, **COUNTS}
        found |= {"commit": commit(), "hardware": hardware("cpu"), "versions": versions()}
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
