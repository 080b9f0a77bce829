#!/usr/bin/env bash
# build 1.6.1 (with setuptools 83.0.0): `python -m build --quiet` of a project whose backend fails prints that it failed, but not why.
#
# Guess before running: quiet means what it means for pip and make, less on success and the whole output on failure. Seen:
# with --quiet the backend's output is thrown away, also when it exits with an error; what is left is that the hook
# returned non-zero. Without --quiet the reason is there.
#
# Who is hit: scripts that build wheels for several interpreters, and keep their logs short. Ours captures the full output and
# prints it when a build fails (release/wheels.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q build==1.6.1 setuptools==83.0.0 wheel 2>pip.log || {
    cat pip.log
    exit 2
}
mkdir project
cat >project/pyproject.toml <<'TOML'
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "unbuilt"
version = "1"
TOML
echo 'raise SystemExit("no compiler: install g++")' >project/setup.py

says_why() {
    # whether the reason is in what a failing build prints
    if env/bin/python -m build --wheel --no-isolation "$@" project >out.txt 2>&1; then
        echo "built"
    elif grep -q "install g++" out.txt; then
        echo yes
    else
        echo no
    fi
}
found="$(says_why) $(says_why --quiet)"
echo "build 1.6.1 says why a backend failed: plain, then --quiet: $found"
tail -n 2 out.txt
[ "$found" = "yes no" ] || {
    echo "CHANGED: expected yes no"
    exit 1
}
echo "as found: quiet drops the reason"
