"""Which instructions modules have, and which of them the interpreter does not know.

A command too, with PYTHONPATH=tests:tests/support: `python -m ptx.spellings NAME=FOLDER ...` prints a table of the
modules in folders that compile_triton.py or `ptx.emitted` wrote. The first is what the others are compared with.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from .kernel import Kernel
from .lanes import Registers
from .parser import KernelText, NotUnderstood, read


def spellings(kernels: Iterable[KernelText]) -> Counter[str]:
    """How often each opcode stands there, with its modifiers."""
    return Counter(i.opcode for kernel in kernels for i in kernel.instructions)


def not_understood(kernel: KernelText) -> list[str]:
    """What the interpreter says about the instructions that it does not know, the first of each spelling."""
    try:
        Kernel(kernel)
    except NotUnderstood:
        pass
    else:
        return []
    found: dict[str, str] = {}
    decoder = Kernel.__new__(Kernel)
    decoder.text, decoder.registers = kernel, Registers(kernel)
    for instruction in kernel.instructions:
        try:
            decoder.decode(instruction)
        except NotUnderstood as error:
            found.setdefault(instruction.opcode, str(error))
    return list(found.values())


def kernels_in(folder: Path, prefix: str = "") -> list[KernelText]:
    """The kernels of all modules in a folder."""
    texts = [path.read_text() for path in sorted(folder.glob(f"{prefix}*.ptx"))]
    return [kernel for text in texts for kernel in read(text).values()]


def table(folders: dict[str, Path]) -> str:
    """Modules, instructions and spellings by folder and architecture, in Markdown.

    A spelling is beyond those of sm_90 in the first folder, or of the same architecture in it.

    Raises:
        NotUnderstood: the interpreter does not know an instruction.
    """
    first = next(iter(folders))
    rows, of_first = [], {}
    for name, folder in folders.items():
        archs = sorted({int(path.name.partition("_")[0]) for path in folder.glob("*_*.ptx")})
        for arch in sorted(archs, key=lambda arch: arch != 90):
            kernels = kernels_in(folder, f"{arch}_")
            if missing := [each for kernel in kernels for each in not_understood(kernel)]:
                raise NotUnderstood("; ".join(missing))
            counted = spellings(kernels)
            known = of_first.get(90 if name == first else arch, counted)
            beyond = ", ".join(f"`{each}`" for each in sorted(set(counted) - set(known)))
            rows.append((name, arch, len(kernels), sum(counted.values()), len(counted), beyond))
            if name == first:
                of_first[arch] = counted
    lines = [
        "| compiler | sm_ | kernels | instructions | spellings | beyond |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


if __name__ == "__main__":
    pairs = (argument.partition("=") for argument in sys.argv[1:])
    print(table({name: Path(folder) for name, _, folder in pairs}))
