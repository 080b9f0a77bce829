"""Names of the Triton kernels that are audited, by the rules in them: "0", "0+9", or "every"."""

from __future__ import annotations

from stackelberg_fused.groups.rules import RULES, Rule

# one rule for each set of buffers
SHORT = (0, Rule.SGD, Rule.AMSGRAD, Rule.SGD | Rule.MOMENTUM)
EVERY = "every"


def name_of(*rules: int) -> str:
    """The name of the kernel for launches with these rules."""
    return EVERY if set(rules) == set(RULES) else "+".join(str(int(rule)) for rule in rules)


def rules_of(name: str) -> tuple[int, ...]:
    """The rules of a kernel by its name, ascending."""
    return tuple(sorted(RULES if name == EVERY else map(int, name.split("+"))))
