#!/usr/bin/env bash
# Sphinx 9.0.4: with autodoc_preserve_defaults=True, a function whose `__signature__` has a default more than its source loses all arguments.
#
# Guess before running: the option shows a default as the source has it, and where the source does not have that parameter,
# as a decorator may add one, its value is shown as without the option.
# Seen: defaults of the source are taken off a list, one for each parameter of `inspect.signature` that has a default. Where
# the list is too short: "WARNING: error while formatting arguments ...: pop from empty list", and the page shows `g()`, an
# error of the build under -W. Without the option both functions are shown right.
#
# Who is hit: libraries whose decorators spell out **kwargs in `__signature__`, as ours do (docs/site/conf.py leaves the option out).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q sphinx==9.0.4 2>pip.log || {
    cat pip.log
    exit 2
}
mkdir source
cat >source/spelled.py <<'CODE'
import inspect


def spelled(function):
    signature = inspect.signature(function)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    extra = inspect.Parameter("extra", inspect.Parameter.KEYWORD_ONLY, default=1)
    function.__signature__ = signature.replace(parameters=[*named, extra])
    return function


@spelled
def g(a=0, *, b=2, **rest):
    """Has three."""
CODE
cat >source/conf.py <<'CODE'
import sys

sys.path.insert(0, ".")
extensions = ["sphinx.ext.autodoc"]
CODE
printf '.. autofunction:: spelled.g\n' >source/index.rst
for option in 0 1; do
    (cd source && ../env/bin/python -m sphinx -q -b text -D autodoc_preserve_defaults=$option . ../$option) 2>log-$option || true
    grep -o 'pop from empty list' log-$option | head -n 1 || true
    head -n 1 $option/index.txt
done | tee found
cat >expected <<'TEXT'
spelled.g(a=0, *, b=2, extra=1)
pop from empty list
spelled.g()
TEXT
cmp -s expected found || { echo "CHANGED: expected"; cat expected; exit 1; }
echo "as found: the option takes the arguments away"
