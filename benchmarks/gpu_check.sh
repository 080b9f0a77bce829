#!/usr/bin/env bash
# usage: benchmarks/gpu_check.sh OUTDIR
#
# Checks a machine with a GPU, in at most seven minutes and without a network: builds for the visible GPU only, then runs
# the tests marked gpu, compute-sanitizer on a small step, and the benchmark. Uses the torch, triton, pybind11, ninja and
# pytest of PYTHON (default python3), installs nothing into it and does not change the checkout.
# OUTDIR gets summary.txt, install.txt, tests.txt, sanitizer.txt, bench.txt and the files of the benchmark.
# Exit status: 0 all passed, 1 a stage failed, 2 there is no GPU.
set -u -o pipefail

if [ $# -ne 1 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd -P)
source=$(cd "$(dirname "$0")/.." && pwd -P)
python=${PYTHON:-python3}
summary=$out/summary.txt
limit=420 # seconds in all; the benchmark gets the rest of it
failed=0
: >"$summary"

say() { echo "$*" | tee -a "$summary"; }

# stage NAME SECONDS FILE COMMAND...: runs a command with a time limit; FILE gets its output line by line
stage() {
    local name=$1 seconds=$2 file=$out/$3 begin=$SECONDS code result
    shift 3
    : >"$file"
    timeout --kill-after=10 "$seconds" "$@" 2>&1 | tee -a "$file"
    code=${PIPESTATUS[0]}
    case $code in
    0) result=passed ;;
    77) result="skipped: $(tail -n 1 "$file")" ;;
    124 | 137) result="FAILED: over its $seconds s" ;;
    *) result="FAILED: exit status $code" ;;
    esac
    say "$(printf '%-10s %4d s  %s' "$name" $((SECONDS - begin)) "$result")"
    [[ $result == FAILED* ]] && failed=1
    return "$code"
}

arch=$("$python" -c '
import torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(";".join(sorted({"%d%d" % torch.cuda.get_device_capability(i) for i in range(count)})))
' 2>"$out/install.txt")
if [ -z "$arch" ]; then
    say "no GPU that torch of $python can use: nothing to check"
    cat "$out/install.txt"
    exit 2
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/source" "$work/site" "$work/run"
tar -C "$source" --exclude=./.git --exclude=./.venv --exclude=./build --exclude='*.so' --exclude=__pycache__ \
    --exclude='*.egg-info' --exclude=./benchmarks/results -cf - . | tar -C "$work/source" -xf -

say "$(date -u +%Y-%m-%dT%H:%MZ)  commit $(git -C "$source" rev-parse --short HEAD 2>/dev/null || echo unknown)"
say "$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "sm_$arch")"
say "$("$python" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__)')"

# from here on the installed copy comes first on the path and the working directory is empty, so that Python imports
# neither the checkout, which may lack the native modules, nor an older installation
cd "$work/run" || exit 1
export PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

install() {
    STACKELBERG_BUILD_CPU=1 STACKELBERG_BUILD_CUDA=1 STACKELBERG_CUDA_ARCHS=$arch "$python" -m pip install -v \
        --no-index --no-build-isolation --no-deps --target "$work/site" "$work/source" || return
    "$python" -c '
import sys, stackelberg_fused._cpu, stackelberg_fused._cuda as native
assert native.__file__.startswith(sys.argv[1]), native.__file__' "$work/site" || return
    "$python" -m stackelberg_fused doctor
}

sanitizer() {
    local tool
    set -o pipefail
    tool=$(PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin command -v compute-sanitizer) ||
        { echo "compute-sanitizer is not installed" && return 77; }
    # each tensor gets its own allocation; in torch's pool, an access past its end would go unnoticed
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$tool" --tool memcheck --error-exitcode 1 "$python" "$work/step.py" 2>&1 |
        tee "$work/sanitizer.txt" && return
    grep -qi 'device not supported' "$work/sanitizer.txt" || return 1
    echo "compute-sanitizer does not support this device" && return 77
}

cat >"$work/step.py" <<'PYTHON'
import torch

import stackelberg_fused as sf


def gradient(size: int, shift: int) -> torch.Tensor:
    return torch.randn(size + shift, device="cuda")[shift:]


available = [status.name for status in sf.backends() if status.available]
for backend in [name for name in ("cuda", "triton") if name in available]:
    for optimizer in (sf.StackelbergAdam, sf.StackelbergAdamW, sf.StackelbergSGD):
        sizes = [0, 1, 15, 63, 4095, 4096, 4097, 100_001]
        params = [torch.nn.Parameter(torch.randn(n, device="cuda")) for n in sizes]
        groups = [{"params": params[:4], "role": "head"}, {"params": params[4:]}]
        opt = optimizer(groups, lr=1e-3, backend=backend)
        for shift in range(4):
            for p in params:
                p.grad = gradient(p.numel(), shift)
            opt.step()
        torch.cuda.synchronize()
        assert all(bool(p.isfinite().all()) for p in params)
        print(backend, optimizer.__name__, "ok")
PYTHON

export -f install sanitizer
export python work out arch
if stage install 80 install.txt bash -c install; then
    stage tests 150 tests.txt "$python" -m pytest -c "$work/source/pyproject.toml" --rootdir "$work/source" \
        -p no:cacheprovider -m gpu -v --durations=5 "$work/source/tests"
    stage sanitizer 60 sanitizer.txt bash -c sanitizer
    # the benchmark asks git for the commit that it ran from
    [ -e "$source/.git" ] && export GIT_DIR=$source/.git GIT_WORK_TREE=$source
    rest=$((limit - SECONDS))
    stage bench "$rest" bench.txt "$python" -m stackelberg_fused bench --device cuda --with-backward --out "$out" \
        --seconds 8 --compile-seconds 30 --budget $((rest - 60))
fi

files=$(find "$out" -type f | wc -l)
[ "$files" -le 8 ] || say "note: $files files in $out; empty it before the next run"
echo
cat "$summary"
exit "$failed"
