#!/bin/sh
# Take out of an environment what serving does not need: headers, static libraries, compilers, tests, build files.
#
#   images/trim.sh VENV
set -eu
site=$(echo "$1"/lib/python3.*/site-packages)
before=$(du -sm "$1" | cut -f1)

rm -rf "$site"/torch/include "$site"/torch/share "$site"/torch/test "$site"/torch/bin/protoc* "$site"/torchgen/packaged
rm -rf "$site"/nvidia/*/include "$site"/nvidia/*/nvvm "$site"/nvidia/*/bin "$site"/nvidia/*/src
rm -rf "$site"/triton/_C/include "$site"/triton/backends/*/include
find "$1" -type f \( -name '*.a' -o -name '*.lib' -o -name '*.cmake' -o -name '*.pdb' -o -name '*.cu' -o -name '*.cuh' \
    -o -name '*.hpp' -o -name '*.h' -o -name '*.pyx' -o -name '*.pxd' \) -delete
find "$site" -type d \( -name tests -o -name test \) -prune -exec rm -rf {} +
rm -rf "$site"/pip "$site"/pip-*.dist-info "$site"/setuptools/_vendor/*/tests

echo "trim: $before MiB before, $(du -sm "$1" | cut -f1) MiB after" >&2
