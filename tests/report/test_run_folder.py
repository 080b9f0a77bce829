"""Reading a run: what was interrupted, resumed or broken, and folders without a run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from stackelberg_fused.report.run_folder import NoRunError, read

HEADER = {"kind": "run", "format": 1, "arm": "a", "started": "2026-01-01T00:00:00+00:00"}


def write(folder: Path, *rows: object, name: str = "a") -> None:
    text = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / f"{name}.steps.jsonl").write_text("\n".join(text) + "\n")


def step(number: int, loss: object = 1.0, kind: str = "step") -> dict[str, object]:
    return {"kind": kind, "step": number, "loss": loss}


def test_a_step_that_comes_again_replaces_all_from_it_on(tmp_path: Path) -> None:
    write(
        tmp_path,
        HEADER,
        step(0, 9.0, "evaluation"),
        *(step(i, float(i)) for i in (1, 2, 3, 4)),
        step(4, 4.0, "evaluation"),
        {"kind": "end", "finished": False},
        {**HEADER, "started": "2026-02-02", "settings": {"lr": 2}},
        *(step(i, 10.0 * i) for i in (3, 4)),
        step(4, 40.0, "evaluation"),
    )
    (arm,) = read(tmp_path)
    assert [row.values["loss"] for row in arm.steps] == [1.0, 2.0, 30.0, 40.0]
    assert [(r.step, r.values["loss"]) for r in arm.evaluations] == [(0, 9.0), (4, 40.0)]
    assert arm.finished is None  # it goes on
    assert arm.started == HEADER["started"]
    assert arm.section("settings") == {"lr": 2}
    assert arm.section("environment") == {}


def test_lines_that_are_none_are_counted(tmp_path: Path) -> None:
    write(
        tmp_path,
        HEADER,
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"step": 1}',
        step(1),
        {"kind": "step"},
        *(step(number) for number in (-1, 1.5, True, "2", 1 << 60)),  # type: ignore[arg-type]
        {"kind": "poem", "step": 2},
        {"kind": "end", "finished": True},
    )
    (arm,) = read(tmp_path)
    assert [row.step for row in arm.steps] == [1]
    assert arm.unreadable == 11
    assert arm.complete


def test_values_are_numbers_whatever_they_were(tmp_path: Path) -> None:
    row = {
        "loss": "nan",
        "rate": {"body": 0.5, "head": "inf"},
        "word": "x",
        "list": [1],
        "no": None,
    }
    write(
        tmp_path, HEADER, {"kind": "step", "step": 1, **row}, '{"kind":"step","step":2,"loss":NaN}'
    )
    (arm,) = read(tmp_path)
    values = arm.steps[0].values
    assert (values["rate.body"], values["rate.head"]) == (0.5, math.inf)
    assert all(math.isnan(values[name]) for name in ("loss", "word", "list", "no"))
    assert math.isnan(arm.steps[1].values["loss"])


def test_arms_come_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    for name, started in (("a", "2026-03"), ("b", "2026-01"), ("c", "2026-02")):
        write(tmp_path, {**HEADER, "arm": name, "started": started}, step(1), name=name)
    assert [arm.name for arm in read(tmp_path)] == ["b", "c", "a"]


def test_folders_without_a_run_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(NoRunError, match="nowhere is not there"):
        read(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(NoRunError, match="file is a file: a folder is expected"):
        read(tmp_path / "file")
    with pytest.raises(NoRunError, match=r"has no file \*\.steps\.jsonl, which sf\.Recorder"):
        read(tmp_path)
    inner = tmp_path / "language"
    inner.mkdir()
    write(inner, HEADER)
    with pytest.raises(NoRunError, match="language has some"):
        read(tmp_path)
    with pytest.raises(NoRunError, match=r"has no step yet in a\.steps\.jsonl"):
        read(inner)
    write(inner, {**HEADER, "format": 2}, step(1))
    with pytest.raises(NoRunError, match="has format 2, this version reads 1"):
        read(inner)


def test_evaluations_that_come_before_their_step_are_kept(tmp_path: Path) -> None:
    rows = [step(i, float(i), kind) for i in (1, 2, 3) for kind in ("evaluation", "step")]
    write(tmp_path, HEADER, *rows, step(2, 20.0, "evaluation"), step(2, 20.0))
    (arm,) = read(tmp_path)
    assert [row.step for row in arm.steps] == [1, 2]
    assert [row.step for row in arm.evaluations] == [1]
    write(tmp_path, HEADER, *rows)
    (arm,) = read(tmp_path)
    assert [row.step for row in arm.evaluations] == [1, 2, 3]


def test_evaluations_after_one_step_are_one(tmp_path: Path) -> None:
    more = {"kind": "evaluation", "step": 1, "accuracy": 0.5}
    write(tmp_path, HEADER, step(1), step(1, 2.0, "evaluation"), more)
    (arm,) = read(tmp_path)
    assert [row.values for row in arm.evaluations] == [{"loss": 2.0, "accuracy": 0.5}]
