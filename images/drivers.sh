#!/bin/sh
# Compile ahead of time the C file that Triton compiles when it first sees a GPU, because a server has no compiler. The
# kernels themselves need none: Triton brings its own. images/cc.sh finds what is made here by its source's SHA-256.
#
#   images/drivers.sh VENV
set -eu
venv=$1
compiled=$venv/lib/compiled
headers=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include", "posix_prefix"))')

# It links against the driver's library, which comes with the GPU; a library of that name without content does here.
stub=$(mktemp -d)
trap 'rm -rf "$stub"' EXIT
gcc -shared -Wl,-soname,libcuda.so.1 -o "$stub/libcuda.so.1" -x c /dev/null

for source in "$venv"/lib/python3.*/site-packages/*/backends/nvidia/driver.c; do
    [ -f "$source" ] || continue
    mkdir -p "$compiled"
    out=$compiled/$(sha256sum "$source" | cut -d' ' -f1).so
    # The options are those of Triton's own `build.py`.
    gcc "$source" -O3 -shared -fPIC -Wno-psabi -o "$out" -Wl,--no-as-needed -l:libcuda.so.1 "-L$stub" \
        "-I$(dirname "$source")/include" "-I$headers"
    echo "drivers: compiled ${source#"$venv"/}" >&2
done
