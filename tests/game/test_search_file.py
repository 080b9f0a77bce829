"""The file of a search for rates: a search goes on in it, and no other search does."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from scales import BATCHES, Scales, curved, scales_groups, search_scales
from torch import Tensor, nn

import stackelberg_fused as sf
from stackelberg_fused.game.search_file import described_value, open_storage


def _as_lists(found: sf.RateSearch) -> Any:
    return found.rates, found.one_rate, found.losses, found.trials


def test_a_search_goes_on_where_it_ended(tmp_path: Path) -> None:
    whole = search_scales(budget=8)
    path = tmp_path / "a folder" / "search.log"
    runs, stopped = [0], Scales

    def interrupted() -> nn.Module:
        runs[0] += 1
        if runs[0] == 20:
            raise KeyboardInterrupt
        return stopped()

    settings: dict[str, Any] = {
        "groups": scales_groups,
        "optimizer": sf.StackelbergSGD,
        "lrs": (1e-4, 100.0),
        "budget": 8,
        "steps": 15,
        "tuning_seeds": 2,
        "seeds": 6,
        "path": path,
    }
    with pytest.raises(KeyboardInterrupt):
        sf.find_rates(interrupted, BATCHES, curved, **settings)
    before = runs[0]
    resumed = sf.find_rates(interrupted, BATCHES, curved, **settings)
    assert _as_lists(resumed) == _as_lists(whole)
    taken = runs[0] - before
    again = sf.find_rates(interrupted, BATCHES, curved, **settings)
    assert _as_lists(again) == _as_lists(whole)
    assert runs[0] - before - taken == 1, "a finished search runs nothing but looks at the groups"
    with pytest.raises(
        ValueError, match="the file is of another search, whose steps was 15 and not 16"
    ):
        sf.find_rates(Scales, BATCHES, curved, **{**settings, "steps": 16})


def test_a_smaller_budget_counts_the_first_points(tmp_path: Path) -> None:
    path = tmp_path / "search.log"
    larger = search_scales(budget=8, path=path)
    smaller = search_scales(budget=3, path=path)
    for kind, points in smaller.trials.items():
        assert points == larger.trials[kind][:3]
    assert smaller.one_rate == min(smaller.trials["one rate"], key=lambda p: p.loss).rates[0]
    assert _as_lists(search_scales(budget=8, path=path)) == _as_lists(larger)


def test_a_larger_budget_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "search.log"
    smaller = search_scales(budget=3, path=path)
    larger = search_scales(budget=8, path=path)
    for kind, points in larger.trials.items():
        assert len(points) == 8
        assert points[:3] == smaller.trials[kind]
    best = min(larger.trials["one rate"], key=lambda p: p.loss)
    assert best in larger.trials["rates by group"]


def _wider(model: nn.Module) -> list[dict[str, Any]]:
    groups = scales_groups(model)
    groups[0]["params"].append(nn.Parameter(torch.zeros(7)))
    return groups


@pytest.mark.parametrize(
    "change, name",
    [
        ({"optimizer": torch.optim.SGD}, "optimizer"),
        ({"groups": _wider}, "elements"),
        ({"momentum": 0.5}, "settings"),
        ({"lrs": (1e-4, 10.0)}, "lrs"),
    ],
)
def test_another_search_is_refused(tmp_path: Path, change: dict[str, Any], name: str) -> None:
    path = tmp_path / "search.log"
    search_scales(budget=1, steps=2, path=path)
    with pytest.raises(ValueError, match=f"the file is of another search, whose {name} was "):
        search_scales(budget=1, steps=2, path=path, **change)


def test_other_batches_are_refused_by_their_number(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"groups": scales_groups, "budget": 1, "steps": 2, "seeds": 5}
    path = tmp_path / "search.log"
    sf.find_rates(Scales, BATCHES, curved, path=path, **settings)
    with pytest.raises(ValueError, match="whose batches was 4 and not 3"):
        sf.find_rates(Scales, BATCHES[:3], curved, path=path, **settings)


def test_a_call_that_failed_leaves_the_file_free(tmp_path: Path) -> None:
    path = tmp_path / "search.log"

    def wrong(model: nn.Module, batch: Tensor) -> Tensor:
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        sf.find_rates(Scales, BATCHES, wrong, groups=scales_groups, lrs=(1.0, 2.0), path=path)
    found = search_scales(budget=2, path=path)
    assert _as_lists(found) == _as_lists(search_scales(budget=2))


def _named(_: Any) -> None: ...


class _Plain: ...


def test_settings_are_described_without_addresses() -> None:
    for value in (
        _named,
        _Plain,
        _Plain(),
        functools.partial(_named, _named, key=[_Plain()]),
        {"a": (_named, 1.0)},
    ):
        assert "0x" not in described_value(value), value
    assert described_value(functools.partial(_named, 1)) != described_value(
        functools.partial(_named, 2)
    )
    assert described_value({"lr": 1.0}) != described_value({"lr": 2.0})
    assert described_value((0.9, 0.999)) == "[0.9, 0.999]"


def test_one_search_at_a_time_has_the_file(tmp_path: Path) -> None:
    path = tmp_path / "search.log"
    with (
        open_storage(path, ()),
        pytest.raises(RuntimeError, match=r"another search has '.*search.log' open"),
    ):
        search_scales(budget=1, path=path)
    search_scales(budget=1, steps=2, path=path)


def test_a_killed_process_leaves_the_file_free(tmp_path: Path) -> None:
    path = tmp_path / "search.log"
    code = (
        "import os\n"
        "from stackelberg_fused.game.search_file import open_storage\n"
        f"with open_storage({str(path)!r}, ()):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -9
    search_scales(budget=1, steps=2, path=path)


def test_a_line_that_was_cut_off_costs_one_point_at_most(tmp_path: Path) -> None:
    path = tmp_path / "search.log"
    whole = search_scales(budget=3, path=path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3 // 10 * 10 + 1].rstrip(b"\n"))
    for _ in range(2):
        assert _as_lists(search_scales(budget=3, path=path)) == _as_lists(whole)


def test_what_is_no_file_of_a_search_is_refused(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("not a search")
    for path, match in (
        (tmp_path, "is a folder, not a file"),
        (notes, "notes.txt' is not one that keeps a search"),
    ):
        with pytest.raises(ValueError, match=match):
            search_scales(budget=1, path=path)
    assert notes.read_text() == "not a search"
    with open_storage(tmp_path / "other.log", ()) as storage:
        optuna.create_study(study_name="mine", storage=storage)
    with pytest.raises(ValueError, match=r"other\.log' has another study of Optuna, 'mine'"):
        search_scales(budget=1, path=tmp_path / "other.log")
