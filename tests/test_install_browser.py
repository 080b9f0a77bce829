"""`.ci/install_browser` on machines that have a browser, can get one, or cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from paths import ROOT

SCRIPT = ROOT / ".ci" / "install_browser"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def machine(folder: Path, **commands: str) -> dict[str, str]:
    """An environment whose commands are these scripts, and what the script itself needs."""
    for name, body in commands.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    for name in ("mktemp", "tail", "rm", "cp", "chmod"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    environment = {"PATH": str(folder), "TMPDIR": str(folder)}
    return environment | {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"}


def said(environment: dict[str, str], status: int = 0) -> str:
    command = [str(shutil.which("bash")), str(SCRIPT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, "")
    return done.stdout


BROWSER = "echo Chromium 150"


def test_a_browser_that_is_there_is_kept(tmp_path: Path) -> None:
    environment = machine(tmp_path, google_chrome=BROWSER, id="echo 0", apt_get="touch called")
    assert said(environment) == "browser: Chromium 150\n"


def test_one_that_does_not_run_is_none(tmp_path: Path) -> None:
    """Ubuntu's package of that name is a script that asks for a snap."""
    environment = machine(tmp_path, chromium_browser="exit 1", id="echo 1000")
    assert said(environment, 1) == "browser: none, and only root can install one, by apt-get\n"


@pytest.mark.parametrize("lists", ["there", "missing"])
def test_it_is_installed_also_where_lists_are_old(lists: str, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.write_text(f"#!/bin/bash\n{BROWSER}\n")
    apt = f"""
case "$*" in
*update) echo > {tmp_path}/lists ;;
*install*) [ -e {tmp_path}/lists ] && cp {made} {tmp_path}/chromium && chmod +x {tmp_path}/chromium ;;
esac"""
    environment = machine(tmp_path, id="echo 0", apt_get=apt)
    if lists == "there":
        (tmp_path / "lists").touch()
    assert said(environment).startswith("browser: Chromium 150, installed in ")


def test_what_apt_said_is_shown_where_it_failed(tmp_path: Path) -> None:
    environment = machine(tmp_path, id="echo 0", apt_get="echo no network; exit 100")
    found = said(environment, 1).splitlines()
    assert found[:2] == ["no network", "no network"]
    assert found[2].startswith("browser: none; apt-get could not install chromium within ")
