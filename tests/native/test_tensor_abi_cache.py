"""Verdicts are remembered as far as the file system allows, and only this user's are believed."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stackelberg_fused.native import tensor_abi_cache as cache
from stackelberg_fused.native.tensor_abi_cache import Verdict

ABOUT = {"torch": "1"}


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("STACKELBERG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / "cache"


def test_many_write_and_read_at_once(folder: Path) -> None:
    about = {"torch": "1" * 100_000}

    def rank(_: int) -> Verdict | None:
        assert cache.write(about, Verdict(True))
        return cache.read(about)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(rank, range(64))) == [Verdict(True)] * 64
    assert [path.name for path in folder.iterdir()] == [cache._name(about)]


@pytest.mark.parametrize(
    "env, folder",
    [
        ({"STACKELBERG_CACHE_DIR": "/mine", "XDG_CACHE_HOME": "/xdg", "HOME": "/home/me"}, "/mine"),
        ({"XDG_CACHE_HOME": "/xdg", "HOME": "/home/me"}, "/xdg/stackelberg_fused"),
        ({"XDG_CACHE_HOME": "xdg", "HOME": "/home/me"}, "/home/me/.cache/stackelberg_fused"),
        ({"HOME": "/home/me"}, "/home/me/.cache/stackelberg_fused"),
        ({"HOME": "me"}, None),
    ],
)
def test_the_folder_is_that_of_the_user(
    env: dict[str, str], folder: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STACKELBERG_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    found = cache._cache_folder()
    assert (found and str(found)) == folder


def test_a_read_only_folder_is_read_and_another_is_written(folder: Path) -> None:
    folder.write_text("a file, not a folder")
    assert cache.write(ABOUT, Verdict(True))
    (second,) = folder.parent.glob("stackelberg_fused-*")
    assert second.stat().st_mode & 0o777 == 0o700
    assert cache.read(ABOUT) == Verdict(True)
    folder.unlink()
    folder.mkdir()
    (folder / cache._name(ABOUT)).write_text(
        '{"works": false, "reason": "read first", "about": {"torch": "1"}}'
    )
    assert cache.read(ABOUT) == Verdict(False, "read first")


@pytest.mark.parametrize("kind", ["writable by others", "a link", "a file"])
def test_a_folder_that_others_could_have_filled_is_not_believed(kind: str, folder: Path) -> None:
    folder.write_text("a file, not a folder")
    cache.write(ABOUT, Verdict(True))
    (second,) = folder.parent.glob("stackelberg_fused-*")
    if kind == "writable by others":
        second.chmod(0o777)
    elif kind == "a link":
        second.symlink_to(second.rename(folder.parent / "elsewhere"))
    else:
        second.rename(folder.parent / "elsewhere")
        second.write_text("")
    assert cache.read(ABOUT) is None
    assert not cache.write(ABOUT, Verdict(True))
    with cache.one_at_a_time(ABOUT, 1.0) as is_my_turn:
        assert not is_my_turn


@pytest.mark.parametrize("seconds, is_believed", [(1.0, True), (25 * 3600.0, False)])
def test_what_does_not_last_is_believed_for_a_day(
    seconds: float, is_believed: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = cache.time.time()
    monkeypatch.setattr(cache.time, "time", lambda: now)
    failed = Verdict(False, "no answer", lasts=False)
    cache.write(ABOUT, failed)
    monkeypatch.setattr(cache.time, "time", lambda: now + seconds)
    assert cache.read(ABOUT) == (failed if is_believed else None)
    monkeypatch.setattr(cache.time, "time", lambda: now - 3600.0)  # a clock that was set back
    assert cache.read(ABOUT) is None


def test_a_turn_ends_with_the_block_and_waiting_with_the_limit(folder: Path) -> None:
    if cache.fcntl is None:
        pytest.skip("this system has no file locks")
    with cache.one_at_a_time(ABOUT, 1.0) as first:
        with cache.one_at_a_time(ABOUT, 0.1) as second:
            assert (first, second) == (True, False)
        with cache.one_at_a_time({"torch": "2"}, 0.1) as other:
            assert other
    with cache.one_at_a_time(ABOUT, 0.1) as third:
        assert third
