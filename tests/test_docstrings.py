"""Docstrings of what users call: they explain every parameter, name the errors, and their examples run."""

from __future__ import annotations

import dataclasses
import doctest
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from docstring_sections import parameters, raised, sections
from public_api import PUBLIC, members
from torch import nn

import stackelberg_fused as sf

NO_EXAMPLE = {"AlternatingStep", "BackendStatus", "BestResponse", "Curvature", "RateSearch"} | {
    *("RatioSearch", "StackelbergValue"),  # what functions return, whose examples show them
}


def cases() -> dict[str, Any]:
    found = dict(PUBLIC)
    for name, public in PUBLIC.items():
        if isinstance(public, type):
            found |= {f"{name}.{key}": member for key, (_, member) in members(public).items()}
    return found


CASES = cases()
by_case = pytest.mark.parametrize("name", CASES)


def function_of(name: str) -> Callable[..., Any]:
    found = CASES[name]
    return found.fget if isinstance(found, property) else found


@by_case
def test_there_is_a_docstring(name: str) -> None:
    summary = (CASES[name].__doc__ or "").split("\n\n")[0].rstrip()
    assert summary.endswith((".", ":")), f"{name}: {summary!r}"


@by_case
def test_every_parameter_is_explained(name: str) -> None:
    found, told = CASES[name], sections(inspect.getdoc(CASES[name]) or "")
    if dataclasses.is_dataclass(found):
        fields = [field.name for field in dataclasses.fields(found)]
        expected = [] if found is sf.NonNegative else fields
        assert list(told.get("Attributes", {})) == expected
        return
    assert sorted(told.get("Args", {})) == sorted(parameters(function_of(name)))


@by_case
def test_errors_are_named(name: str) -> None:
    found = function_of(name)
    own = [found]
    if isinstance(found, type):
        names = ("__init__", "__post_init__")
        own = [vars(found)[key] for key in names if inspect.isfunction(vars(found).get(key))]
        if dataclasses.is_dataclass(found):  # its constructor is no source
            own = [one for one in own if one.__name__ == "__post_init__"]
    said = sections(inspect.getdoc(CASES[name]) or "").get("Raises", {})
    for one in own:
        assert raised(one) <= set(said), name


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = []
    for name, case in CASES.items():
        names = {"torch": torch, "nn": nn, "sf": sf}
        tests = finder.find(case, name, module=False, globs=names)
        found += [test for test in tests if test.examples and test.name == name]
    return found


EXAMPLES = examples()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_examples_run(example: doctest.DocTest, capsys: pytest.CaptureFixture[str]) -> None:
    flags = doctest.ELLIPSIS | doctest.FAIL_FAST
    runner = doctest.DocTestRunner(verbose=False, optionflags=flags)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody is to learn from what draws a warning
        failed, tried = runner.run(example)
    assert tried
    assert failed == 0, capsys.readouterr().out


def test_each_name_has_an_example() -> None:
    shown = {example.name for example in EXAMPLES}
    assert set(PUBLIC) - shown == NO_EXAMPLE


class TestSections:
    TEXT = """First line.

    Args:
        a, b: two,
            of them.
        **more: others.

    Raises:
        ValueError, TypeError: names: the group.
    """

    def test_names_that_are_explained(self) -> None:
        found = sections(inspect.cleandoc(self.TEXT))
        assert list(found["Args"]) == ["a", "b", "more"]
        assert list(found["Raises"]) == ["ValueError", "TypeError"]

    def test_errors_that_a_function_raises(self) -> None:
        def function(flag: bool) -> None:
            def inner() -> None:
                raise KeyError("not its own")

            if flag:
                raise ValueError("own")
            inner()

        assert raised(function) == {"ValueError"}
