#!/bin/sh
# Everything that waits for a GPU, in under ten minutes: benchmarks/on_gpu.sh [cuda | cuda:1 | --dry-run]
#
# It writes the tables benchmarks/results/*_cuda.md and a log of each step, on_gpu/*.log. A step that fails is named at
# the end, and the others go on. --dry-run runs every step on the CPU, with small volumes, and writes no table.
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-.venv/bin/python}
LOGS=${LOGS:-on_gpu}
device=${1:-cuda}
size="--save" patience=1
if [ "$device" = --dry-run ]; then
    device=cpu
    size="--quick" patience=10
elif ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "there is no GPU that PyTorch can use; try benchmarks/on_gpu.sh --dry-run" >&2
    exit 1
fi
mkdir -p "$LOGS"
failed=""

step() { # name, seconds, command
    name=$1 limit=$2
    shift 2
    echo "== $name (at most $((limit * patience)) s)"
    timeout $((limit * patience)) "$PYTHON" "$@" >"$LOGS/$name.log" 2>&1 && tail -n 15 "$LOGS/$name.log" || failed="$failed $name"
}

step machine 20 -m torch.utils.collect_env
step training_step 180 benchmarks/training_step.py --device "$device" --steps 20 $size
step components 140 benchmarks/run.py --device "$device" --seconds 3 $size
step profile 60 benchmarks/profile_step.py --device "$device" $size
step augmentation 50 benchmarks/augmentation_overhead.py --device "$device" --seconds 20 $size
step inference 90 benchmarks/inference.py --device "$device" $size

if [ -n "$failed" ]; then
    echo "failed:$failed; see $LOGS/" >&2
    exit 1
fi
