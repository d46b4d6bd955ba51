#!/bin/sh
# Take out of an environment what serving does not need, and say how much each kind was.
#
#   images/trim.sh VENV
#
# Python files of torch and Triton all stay, tests too: both hash every one of them into the keys of their compile caches,
# and a cache that the pipeline filled would not be found. Triton keeps its assembler, ptxas, which its kernels need.
set -eu
site=$(echo "$1"/lib/python3.*/site-packages)
first=$(du -sm "$1" | cut -f1)
last=$first

done_with() { # WHAT: say how much smaller it became
    now=$(du -sm "$1" | cut -f1)
    printf 'trim: %5d MiB  %s\n' "$((last - now))" "$2" >&2
    last=$now
}

find "$1" -type f \( -name '*.a' -o -name '*.lib' -o -name '*.pdb' \) -delete
done_with "$1" "static libraries"

# CUDA's compiler and its parts, which come as packages of their own; there is no nvcc to call them. The second NVRTC is
# for compilers that ask for less memory, cuSOLVER's for several GPUs: nothing here is linked against either.
rm -rf "$site"/nvidia/*/bin "$site"/nvidia/*/nvvm "$site"/nvidia/*/lib/libnvvm.so* "$site"/nvidia/*/src \
    "$site"/nvidia/*/lib/libnvrtc*.alt.so* "$site"/nvidia/*/lib/libcusolverMg.so* "$site"/nvidia/*/lib/*.bc
done_with "$1" "CUDA's compiler, and libraries that nothing links"

# Sources that nvcc would compile on demand, and the C++ that goes with them.
rm -rf "$site"/torch/include "$site"/torch/share "$site"/nvidia/*/include "$site"/nvidia/include "$site"/triton/_C/include \
    "$site"/*triton/backends/*/include "$site"/flashinfer/data "$site"/tilelang/3rdparty "$site"/tilelang/src
find "$1" -type f \( -name '*.cmake' -o -name '*.cu' -o -name '*.cuh' -o -name '*.hpp' -o -name '*.h' -o -name '*.inl' \
    -o -name '*.pyx' -o -name '*.pxd' \) -delete
done_with "$1" "headers, and sources of kernels"

rm -rf "$site"/torch/test "$site"/torch/bin/protoc* "$site"/torchgen/packaged
find "$site" -type d \( -name tests -o -name test \) ! -path "$site/torch/*" ! -path "$site/*triton/*" -prune \
    -exec rm -rf {} +
done_with "$1" "tests"

# Profilers; code for AMD's GPUs; CUTLASS for CUDA 12, and whatever is built for another Python; vLLM's other front end; pip.
rm -rf "$site"/*triton/backends/nvidia/lib/cupti "$site"/nvidia/*/lib/libnvperf_* "$site"/*triton/backends/amd/lib/*.so \
    "$site"/nvidia_cutlass_dsl/cu12 \
    "$site"/nvidia_cutlass_dsl/dsl_packages/cutlass/_mlir/_mlir_libs/*.cu12.*.so "$site"/vllm/vllm-rs \
    "$site"/pip "$site"/pip-*.dist-info
ours=$("$1/bin/python" -c 'import sys; print("cpython-%d%d" % sys.version_info[:2])')
find "$site" -name '*.cpython-3*.so' ! -name "*.$ours-*" -delete
done_with "$1" "profilers, code for AMD, CUDA 12 or another Python, another front end, pip"

echo "trim: $first MiB before, $last after" >&2
