"""The trial of a wheel, with programs that stand in for an interpreter, pip and `stackelberg`."""

from __future__ import annotations

from pathlib import Path

import pytest
from interpreters import Interpreter
from paths import ROOT
from trial import Failed, NoSuchTorch, pinned, try_wheel

RUN = ROOT / "requirements" / "run.txt"


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Tries a wheel in an environment where pip prints something, and each program returns an exit status."""
    log = tmp_path / "log"
    monkeypatch.setenv("STACKELBERG_BACKEND", "reference")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(torch: str, pip: str = "", imports: int = 0, verify: int = 0) -> list[str]:
        inner = f'case "$2" in pip) {pip or ":"};; *) exit {imports};; esac'
        last = (
            f'pwd >> "{log}"; echo "${{STACKELBERG_BACKEND-none}} ${{PYTHONPATH-none}}" >> "{log}"'
        )
        python = tmp_path / "python"
        python.write_text(f"""#!/bin/sh
mkdir -p "$3/bin"
cat > "$3/bin/python" <<'END'
#!/bin/sh
echo "$@" >> "{log}"
{inner}
END
cat > "$3/bin/stackelberg" <<'END'
#!/bin/sh
echo "stackelberg $@" >> "{log}"
{last}
[ "$1" = doctor ] || exit {verify}
END
chmod +x "$3/bin/python" "$3/bin/stackelberg"
""")
        python.chmod(0o755)
        interpreter = Interpreter(python, "3.12.1")
        folder = tmp_path / "trial"
        try:
            try_wheel(Path("a.whl"), interpreter, torch, RUN, folder, ["--index-url", "x"])
        finally:
            assert not folder.exists(), "an environment of gigabytes was left"
        return log.read_text().splitlines()

    return make


def test_what_is_pinned_comes_with_the_torch_that_is_pinned(trial, tmp_path: Path) -> None:
    torch = pinned(RUN, "torch")
    install, imports, *_, doctor, where, switches, verify, folder, env = trial(torch)
    assert f"--index-url x --constraint {RUN} torch=={torch} a.whl" in install
    assert imports.startswith("-c")
    assert [doctor, verify] == ["stackelberg doctor", "stackelberg verify"]
    assert where == folder == str(tmp_path / "trial" / "elsewhere")
    assert switches == env == "none none"  # no switch of ours and no module of the checkout gets in
    (tmp_path / "log").unlink()
    assert "--constraint" not in trial("9.9.9")[0]


def test_a_torch_that_is_not_there_is_no_failure(trial) -> None:
    said = 'echo "ERROR: No matching distribution found for torch==9.9.9" >&2; exit 1'
    with pytest.raises(NoSuchTorch, match=r"no torch 9\.9\.9 for CPython 3\.12"):
        trial("9.9.9", pip=said)


@pytest.mark.parametrize(
    "step, what",
    [({"pip": "exit 1"}, "pip"), ({"imports": 1}, "the import"), ({"verify": 1}, "verify")],
    ids=["pip", "imports", "verify"],
)
def test_every_step_can_fail(trial, step: dict, what: str) -> None:
    with pytest.raises(Failed, match=rf"{what} failed beside torch 9\.9\.9"):
        trial("9.9.9", **step)
