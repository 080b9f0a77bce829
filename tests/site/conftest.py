"""The modules that make the site are imported by their plain names, as they import each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from paths import RESULTS, ROOT
from patience import patience

SITE = ROOT / "docs" / "site"
# at the end: `build` is the package of that name for everybody else
if str(SITE) not in sys.path:
    sys.path.append(str(SITE))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it."""
    pytest.importorskip("sphinx")
    if not RESULTS.exists():
        pytest.skip("a source distribution has no results, which pages link to")
    folder = tmp_path_factory.mktemp("site") / "built"
    command = [sys.executable, str(SITE / "build.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(30))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
