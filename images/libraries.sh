#!/bin/sh
# Let the dynamic linker find TensorRT's libraries and the cuBLAS beside them, where an environment has them: TensorRT-LLM
# loads them by name, and they lie inside the environment.
#
#   images/libraries.sh VENV
set -eu
for folder in "$1"/lib/python3.*/site-packages/tensorrt_libs "$1"/lib/python3.*/site-packages/nvidia/cu13/lib; do
    [ ! -d "$folder" ] || echo "$folder"
done >/tmp/libraries
if grep -q tensorrt_libs /tmp/libraries; then
    mv /tmp/libraries /etc/ld.so.conf.d/yap-tensorrt.conf
    ldconfig
else
    rm /tmp/libraries
fi
