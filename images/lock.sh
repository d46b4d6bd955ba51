#!/bin/sh
# Resolve pyproject.toml's extras into the hashed locks beside this file, for Python 3.10 to 3.12 at once.
#
#   images/lock.sh            write the locks
#   images/lock.sh --check    exit 1 when pyproject.toml and the locks have drifted apart
set -eu
cd "$(dirname "$0")/.."
uv=${UV:-.venv-tools/bin/uv}
# A folder of CPU builds must not decide what the CUDA lanes get.
unset UV_FIND_LINKS PIP_FIND_LINKS
locks=images/locks
target=$locks
if [ "${1:-}" = --check ]; then
    target=$(mktemp -d)
    trap 'rm -rf "$target"' EXIT
    cp "$locks"/*.txt "$target"/ # uv keeps pins that still fit, so an unchanged pyproject.toml gives unchanged locks
fi

compile() { # LOCK [options and sources …]
    lock=$1
    shift
    "$uv" pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-header --no-annotate \
        "$@" -o "$target/$lock.txt"
}
cpu() { # EXTRA [more options …]: torch comes from elsewhere, and its companions on PyPI are CUDA builds
    extra=$1
    shift
    compile "$extra" --no-emit-package torch --override "$locks/cpu.overrides" --extra "$extra" "$@" pyproject.toml
}

# The development tools share the serving environment, so they are resolved against its pins.
cpu cpu
pins=$(mktemp)
sed -n 's/^\([A-Za-z0-9_.-]*==[^\\]*\) *\\*$/\1/p' "$target/cpu.txt" >"$pins"
cpu dev -c "$pins"
rm -f "$pins"
cpu cpu-quantize
cpu tool
compile build "$locks/build.in"
compile frameworks --override "$locks/frameworks.overrides" --extra livekit \
    "$locks/frameworks.in" client/pyproject.toml
compile vllm -c "$locks/vllm.constraints" --extra vllm pyproject.toml
pins=$(mktemp)
sed -n 's/^\([A-Za-z0-9_.-]*==[^\\]*\) *\\*$/\1/p' "$target/vllm.txt" >"$pins"
compile ray -c "$pins" --extra ray pyproject.toml
rm -f "$pins"
compile vllm-quantize --extra vllm-quantize pyproject.toml
compile trt --override "$locks/trt.overrides" \
    --no-emit-package torch --no-emit-package torchvision --no-emit-package triton --no-emit-package tensorrt \
    --extra trt "$locks/trt.in" pyproject.toml

[ "$target" = "$locks" ] || diff -r -x '*.overrides' -x '*.constraints' -x '*.in' -x '*.unhashed' "$locks" "$target"
