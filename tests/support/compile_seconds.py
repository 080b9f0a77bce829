"""What Triton takes to compile the kernel of a step, by the rules in it: `python compile_seconds.py`.

CPU seconds, with nothing kept from before, and registers of a thread, for sm_90. Prints a table in Markdown.
"""

from __future__ import annotations

import os
import resource
import tempfile
from pathlib import Path

from mixed_rules import SHORT

from stackelberg_fused.groups.rules import RULES, Rule

ARCH = 90
MIXES = {
    "one: Adam": (0,),
    "two: Adam, SGD with momentum": (0, Rule.SGD | Rule.MOMENTUM),
    "four: these, AMSGrad, SGD": SHORT,
    "thirteen: all without an average": [rule for rule in RULES if not rule & Rule.EMA],
    "all 26": RULES,
}


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for, as ptxas."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def main(folder: Path) -> None:
    os.environ["TRITON_CACHE_DIR"] = str(folder)
    import compile_triton
    import sass

    tasks = {
        "float32": {},
        "float32 and 8-bit": {"formats": compile_triton.SEVERAL},
        "float32, all tasks": compile_triton.EXTRAS["everything"],
    }
    compile_triton.triton.runtime.driver.set_active(compile_triton.Driver(ARCH))
    with compile_triton.compiling_only():
        compile_triton.compile_rules(compile_triton.ADAM, zero_grads=True)  # what comes but once
        print(f"| rules | {' | '.join(tasks)} |\n|{'---|' * (len(tasks) + 1)}", flush=True)
        for mix, rules in MIXES.items():
            cells = []
            # all rules in one launch are for tests
            for options in list(tasks.values())[: 1 if len(rules) == len(RULES) else None]:
                before = cpu_seconds()
                compiled = compile_triton.compile_rules(tuple(sorted(map(int, rules))), **options)
                seconds = cpu_seconds() - before
                cubin = folder / "kernel.cubin"
                cubin.write_bytes(compiled.asm["cubin"])
                (kernel,) = sass.disassemble(cubin)
                cells.append(f"{seconds:.1f} s, {kernel.resources['REG']}")
            cells += ["-"] * (len(tasks) - len(cells))
            print(f"| {mix} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(Path(made))
