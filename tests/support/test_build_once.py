"""What tests compile is made once, whole or not at all."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from build_once import once, run_all


def test_several_that_want_the_same_wait_for_the_one_that_makes_it(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        folder.mkdir()
        time.sleep(0.05)
        (folder / "text").write_text("whole")

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: (once(tmp_path / "it", make) / "text").read_text(), "1234"))
    assert found == ["whole"] * 4
    assert len(made) == 1
    assert not made[0].parent.exists()


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(file: Path) -> None:
        file.write_text("half")
        file.with_name("object").write_text("beside it")
        raise RuntimeError("messages")

    with pytest.raises(RuntimeError, match="messages"):
        once(tmp_path / "it", fail)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert once(tmp_path / "it", lambda file: file.touch()).exists()


def test_commands_say_when_they_are_done_and_what_failed(tmp_path: Path) -> None:
    said: list[str] = []
    touch = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()"
    run_all(
        {name: [sys.executable, "-c", touch, str(tmp_path / name)] for name in ("a", "b")},
        said.append,
    )
    assert sorted(line.partition(",")[0] for line in said) == ["a", "b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    with pytest.raises(RuntimeError, match="no such thing"):
        run_all({"c": [sys.executable, "-c", "raise SystemExit('no such thing')"]})
