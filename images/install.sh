#!/bin/sh
# Install one lock into one virtual environment: what `make` uses on a workstation and what the Dockerfiles use in their
# builder stages, so that both get the same bytes.
#
#   images/install.sh VENV LOCK [LOCK …] [.]    e.g. images/install.sh .venv cpu dev embedded .
#
# A `.` is this checkout itself: the environment gets the commands `yap-pipeline` and `yap-runtime`, which run what lies here.
#
# PYTHON chooses the interpreter (default python3). The clients' own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL,
# PIP_FIND_LINKS, PIP_CERT) are respected. Nothing is done when the environment already holds these locks.
set -eu

UV_VERSION=0.13.9
TORCH_CPU=2.13.0+cpu
TORCH_TRT=2.9.1+cu130
TORCHVISION_TRT=0.24.1+cu130

say() { printf 'install: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

[ $# -ge 2 ] || die "expected VENV LOCK [LOCK …], found $# arguments"
venv=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}

command -v "$python" >/dev/null 2>&1 || die "expected a Python 3.10 to 3.12 as '$python', found none; set PYTHON=/path/to/python3.11"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
3.10 | 3.11 | 3.12) ;;
*) die "expected Python 3.10 to 3.12 as '$python', found $version; set PYTHON=/path/to/python3.11" ;;
esac

# The stamp holds everything that decides the content, so that a changed lock or interpreter starts over.
wanted=$(
    printf '%s %s %s %s\n' "$UV_VERSION" "$TORCH_CPU" "$TORCH_TRT" "$version"
    for lock in "$@"; do
        if [ "$lock" = . ]; then
            printf '%s\n' "$here"
            sed -n '/^\[project.scripts\]/,/^$/p' "$here/../pyproject.toml"
            lock=build
        fi
        cat "$here/locks/$lock.txt" "$here/locks/$lock.unhashed" 2>/dev/null || :
    done
)
wanted=$(printf '%s' "$wanted" | cksum)
stamp=$venv/.installed
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi

# uv reads its own variables; hand it what pip was told.
export UV_INDEX_URL="${UV_INDEX_URL:-${PIP_INDEX_URL:-}}"
export UV_EXTRA_INDEX_URL="${UV_EXTRA_INDEX_URL:-${PIP_EXTRA_INDEX_URL:-}}"
export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
[ -z "${PIP_CERT:-}" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$PIP_CERT}"
for name in UV_INDEX_URL UV_EXTRA_INDEX_URL UV_FIND_LINKS; do
    eval "[ -n \"\$$name\" ]" || unset "$name"
done

tools=${YAP_TOOLS_VENV:-$(dirname "$venv")/.venv-tools}
uv=$tools/bin/uv
if [ ! -x "$uv" ] || [ "$("$uv" --version | cut -d' ' -f2)" != "$UV_VERSION" ]; then
    say "fetching uv $UV_VERSION"
    "$python" -m venv "$tools" || die "'$python -m venv' failed; on Debian and Ubuntu install python3-venv"
    "$tools/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION" ||
        die "pip could not fetch uv $UV_VERSION; check the network, proxy and PIP_* settings"
fi

say "creating $venv (Python $version)"
rm -rf "$venv"
"$uv" venv --quiet --python "$python" "$venv"

on_cpu=
for lock in "$@"; do
    case $lock in cpu | cpu-quantize | tool) on_cpu=yes ;; esac
done
if [ -n "$on_cpu" ]; then
    say "installing torch $TORCH_CPU"
    # PyPI's torch is a CUDA build of several GB: take the CPU build from a local folder, else from PyTorch's own index,
    # which uv knows as a backend. Its hash differs by Python version, so it is pinned by version alone.
    local_torch=
    for folder in $(printf '%s' "${UV_FIND_LINKS:-}" | tr ',' ' '); do
        for file in "$folder"/torch-"$TORCH_CPU"-cp"$(printf %s "$version" | tr -d .)"-*.whl; do
            [ ! -f "$file" ] || local_torch=$file
        done
    done
    if [ -n "$local_torch" ]; then
        "$uv" pip install --quiet --python "$venv/bin/python" --no-deps --compile-bytecode "torch==$TORCH_CPU"
    else
        "$uv" pip install --quiet --python "$venv/bin/python" --no-deps --compile-bytecode --torch-backend cpu \
            "torch==$TORCH_CPU"
    fi || die "no CPU build of torch $TORCH_CPU for Python $version within reach; use a Python that has one (PYTHON=…) or put its wheel into a folder and name that in PIP_FIND_LINKS"
else
    unset UV_FIND_LINKS # a CPU build there would be taken for the same version
fi

for lock in "$@"; do
    if [ "$lock" = . ]; then
        "$uv" pip install --quiet --python "$venv/bin/python" --no-deps --build-constraints "$here/locks/build.txt" \
            --editable "$here/.." || die "this checkout could not be installed; the lines above say why"
        continue
    fi
    say "installing $lock ($(grep -c '==' "$here/locks/$lock.txt") pins)"
    "$uv" pip install --quiet --python "$venv/bin/python" --no-deps --require-hashes --compile-bytecode \
        -r "$here/locks/$lock.txt" || die "$lock: the packages could not be installed; the lines above say which"
    if [ "$lock" = trt ]; then
        say "installing torch $TORCH_TRT"
        # PyPI's build of this version is for CUDA 12. With its dependencies: it pins NVIDIA's libraries itself.
        "$uv" pip install --quiet --python "$venv/bin/python" --torch-backend cu130 --compile-bytecode \
            "torch==$TORCH_TRT" "torchvision==$TORCHVISION_TRT" ||
            die "no CUDA 13 build of torch $TORCH_TRT for Python $version within reach; check that PyTorch's index is"
    fi
    # What only stubs of PyPI name: their content comes from the vendor's index, so no hash of it is known here.
    [ ! -f "$here/locks/$lock.unhashed" ] ||
        "$uv" pip install --quiet --python "$venv/bin/python" --no-deps --compile-bytecode \
            -r "$here/locks/$lock.unhashed" ||
        die "$lock: the vendor's packages could not be installed; name their index in PIP_EXTRA_INDEX_URL"
done
printf '%s' "$wanted" >"$stamp"
say "$venv is ready ($(du -sh "$venv" | cut -f1))"
