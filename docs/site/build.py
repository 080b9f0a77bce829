"""Builds the site: `python docs/site/build.py [FOLDER]`; any warning and any link that leads nowhere is an error."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from links import broken
from pages import ROOT, stage
from sphinx.cmd.build import main as sphinx

HERE = Path(__file__).resolve().parent


def build(site: Path) -> int:
    """Build it from nothing, in place of what is there; return the exit status.

    Args:
        site: the folder of the pages; it is replaced.

    Raises:
        FileExistsError: it holds something else than a site.
    """
    if site.exists() and any(site.iterdir()) and not (site / "objects.inv").exists():
        raise FileExistsError(f"{site} is no site that was built before: it stays as it is")
    with tempfile.TemporaryDirectory() as made:
        source, doctrees = Path(made) / "source", Path(made) / "doctrees"
        stage(source)
        shutil.rmtree(site, ignore_errors=True)
        strict = ["--fail-on-warning", "--keep-going", "--nitpicky", "--quiet"]
        folders = ["-c", str(HERE), "-d", str(doctrees), str(source), str(site)]
        status = sphinx(["-b", "html", *strict, *folders])
    # of Sphinx's own, for builds that go on where the last one ended
    (site / ".buildinfo").unlink(missing_ok=True)
    found = broken(site)
    for line in found:
        print(line, file=sys.stderr)
    return status or bool(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", nargs="?", type=Path, default=ROOT / "build" / "site")
    site = parser.parse_args().site.resolve()
    status = build(site)
    if not status:
        print(f"{site / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
