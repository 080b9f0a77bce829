"""Param groups: defaults, roles, rules, rates, constraints, and how numbers are stored."""
