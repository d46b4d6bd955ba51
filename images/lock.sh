#!/bin/sh
# Resolve pyproject.toml's extras into the hashed locks beside this file, for Python 3.10 to 3.12 at once.
#
#   images/lock.sh            write the locks
#   images/lock.sh --check    exit 1 when pyproject.toml and the locks have drifted apart
set -eu
cd "$(dirname "$0")/.."
uv=${UV:-.venv-tools/bin/uv}
locks=images/locks
target=$locks
if [ "${1:-}" = --check ]; then
    target=$(mktemp -d)
    trap 'rm -rf "$target"' EXIT
    cp "$locks"/*.txt "$target"/ # uv keeps pins that still fit, so an unchanged pyproject.toml gives unchanged locks
fi

resolve() { # EXTRA [more options …]
    extra=$1
    shift
    "$uv" pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-header --no-annotate \
        --no-emit-package torch --override "$locks/cpu.overrides" --extra "$extra" "$@" pyproject.toml -o "$target/$extra.txt"
}

# The development tools share the serving environment, so they are resolved against its pins.
resolve cpu
pins=$(mktemp)
sed -n 's/^\([A-Za-z0-9_.-]*==[^\\]*\) *\\*$/\1/p' "$target/cpu.txt" >"$pins"
resolve dev -c "$pins"
rm -f "$pins"
resolve cpu-quantize

[ "$target" = "$locks" ] || diff -r -x '*.overrides' "$locks" "$target"
