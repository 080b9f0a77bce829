#!/usr/bin/env bash
# pytest-xdist 3.8.0 under pytest 9.2.0: `--dist loadgroup` ignores `xdist_group` marks, without a word.
#
# Guess before running: tests marked with one `xdist_group` name all run in one worker process, whichever the pytest, as
# xdist's documentation says of loadgroup; if a new pytest broke that, an error or a warning would tell.
# Seen: with pytest 9.1.1 one worker runs all 18 tests; with 9.2.0 both do, all tests pass, and the output is the same.
# Both versions are the newest of their package (November 2026), and pip accepts the pair.
#
# Who is hit: suites that group tests around something costly or exclusive (a build, a port, a database): each worker does
# the costly part, or two meet over it. Here requirements/test.txt keeps pytest at 9.1.1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir tests
for file in a b c; do
    cat >"tests/test_$file.py" <<'TEST'
import os

import pytest

pytestmark = pytest.mark.xdist_group("one")


@pytest.mark.parametrize("i", range(6))
def test_where(i, worker_id):
    with open(os.environ["WORKERS"], "a") as file:
        file.write(worker_id + "\n")
TEST
done

# the number of worker processes that ran tests of the group, with this pytest
workers() {
    python3 -m venv "env-$1"
    "env-$1/bin/python" -m pip install -q "pytest==$1" pytest-xdist==3.8.0 execnet==2.1.2 2>pip.log || {
        cat pip.log
        exit 2
    }
    rm -f workers
    WORKERS="$folder/workers" "env-$1/bin/python" -m pytest -q -p no:cacheprovider -n 2 --dist loadgroup tests >log 2>&1 || {
        cat log
        exit 2
    }
    grep -q "18 passed" log
    sort -u workers | wc -l
}

old=$(workers 9.1.1)
new=$(workers 9.2.0)
echo "workers that ran the tests of one group: pytest 9.1.1: $old, pytest 9.2.0: $new (both with pytest-xdist 3.8.0)"
[ "$old" = 1 ] && [ "$new" = 2 ] || { echo "CHANGED: expected 1 and 2"; exit 1; }
echo "as found: under pytest 9.2.0 the group is spread over both workers"
