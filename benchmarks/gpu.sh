#!/usr/bin/env bash
# What is to be known about a GPU, in one call of at most 8 minutes that needs no network.
#   benchmarks/gpu.sh --out results                   with the packages that are installed
#   WHEELS=wheels benchmarks/gpu.sh --out results     and those in a folder (benchmarks/gpu_wheels.sh)
#   benchmarks/gpu.sh --rehearse --out results        tiny sizes, on a machine without a GPU
set -euo pipefail
python="${PYTHON:-python3}"
root="$(cd "$(dirname "$0")/.." && pwd)"
if [ -n "${WHEELS:-}" ]; then
    site="$(mktemp -d)"
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
"$python" -m benchmarks.gpu "$@"
