"""What Sphinx reads of a docstring."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

pytest.importorskip("sphinx")

import docstrings

from stackelberg_fused.layout.statistics import LastStep


@pytest.mark.parametrize(
    "written, read",
    [
        ("the `lr` of it", "the ``lr`` of it"),
        ("two `lr`s", r"two ``lr``\ s"),
        (r"`r'\.bias$'` ends", r"``r'\.bias$'`` ends"),
        ("`**options`", "``**options``"),
        ("f(theta, w*) and |w|", r"f(theta, w\*) and \|w\|"),
        ("w_ is, grad_w is not", r"w\_ is, grad_w is not"),
        ("see docs/algorithm.md.", "see :doc:`/guide/algorithm`."),
    ],
)
def test_signs_mean_themselves(written: str, read: str) -> None:
    assert docstrings.convert([written]) == [read]


def test_code_marks_go_over_lines() -> None:
    assert docstrings.convert(["a `b", "c` d*"]) == ["a ``b", r"c`` d\*"]


def test_indented_blocks_are_code() -> None:
    read = docstrings.convert(["Like this:", "", "    a = b * c", "", "After it."])
    code = [".. code-block:: python", "", "    a = b * c"]
    assert [line for line in read if line.strip()] == ["Like this:", code[0], code[2], "After it."]
    assert read[3] == ""


def test_formulas_are_no_python() -> None:
    read = docstrings.convert(["This is:", "", "    w <- [w - beta * grad_w f]"])
    assert ".. code-block:: text" in read


def test_sections_are_no_code() -> None:
    lines = ["Args:", "    lr: a rate * 2."]
    assert docstrings.convert(lines) == ["Args:", r"    lr: a rate \* 2."]


def test_examples_stay() -> None:
    lines = ["Example:", "    >>> 2 * 3  # `x`", "    6", "", "More*"]
    assert docstrings.convert(lines) == [*lines[:4], r"More\*"]


def test_what_is_returned_has_no_type() -> None:
    read = docstrings.convert(["Returns:", '    "role": the head', "    is last.", "", "Raises:"])
    assert read == [':returns: "role": the head', "    is last.", "", "Raises:"]


def test_types_go_by_their_names() -> None:
    signature = "(a: ~typing.Literal['body', 'head'] | None, b: type = <class 'torch.nn.X'>)"
    read, _ = docstrings.on_signature(None, "", "", None, None, signature, "")
    assert read == "(a: ~stackelberg_fused.groups.option_types.Role | None, b: type = X)"


def test_attributes_have_their_types() -> None:
    @dataclass
    class Report:
        head: LastStep
        body: LastStep
        loss: float | None

    # what is annotated by a string is looked up in the module
    Report.__annotations__ = {"head": LastStep, "body": LastStep, "loss": float | None}
    lines = [
        "A report.",
        "",
        "Attributes:",
        "    head, body: of each.",
        "    loss: its",
        "        value.",
    ]
    step = ":py:obj:`~stackelberg_fused.layout.statistics.LastStep`"
    assert docstrings.with_types(lines, Report)[3:] == [
        f"    head, body ({step}): of each.",
        "    loss (float | None): its",
        "        value.",
    ]
