#!/usr/bin/env bash
# Make the folder of wheels for benchmarks/gpu.sh, on a machine with a package index; at most 50 MiB.
#   benchmarks/gpu_wheels.sh wheels
set -euo pipefail
folder="${1:?give the folder that is to be made}"
list="$(cd "$(dirname "$0")" && pwd)/gpu_wheels.txt"
python="${PYTHON:-python3}"
mkdir -p "$folder"
"$python" -m pip download --quiet --no-deps --only-binary=:all: --dest "$folder" --requirement "$list" \
    --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux1_x86_64
# Hydra's parser comes as source only; its wheel fits every Python 3
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder" antlr4-python3-runtime==4.9.3
kib="$(du -sk "$folder" | cut -f1)"
echo "$folder: $(ls "$folder"/*.whl | wc -l) wheels, $((kib / 1024)) MiB"
if [ "$kib" -gt $((50 * 1024)) ]; then
    echo "That is more than 50 MiB: too much for a machine that is lent with an upload limit." >&2
    exit 1
fi
