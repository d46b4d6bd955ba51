#!/bin/sh
# Install Open MPI without letting it move CUDA.
#
#   images/mpi.sh VERSION PACKAGE …       VERSION pins each package; empty takes the distribution's
#
# A newer Open MPI from NVIDIA's package source, or one that depends on another NCCL, silently replaces the CUDA that the
# base image was chosen for. So every CUDA package that is really there is held, by its exact name; NVIDIA's sources are
# away meanwhile; and the list of CUDA packages must be the same afterwards. The holds stay in the image.
set -eu

version=$1
shift

# Packages that NVIDIA maintains. By maintainer and not by name: globs such as *12* or libcu* also hit gcc-12-base and
# libcurl, and miss what they do not know.
cuda_packages() {
    dpkg-query --show --showformat '${db:Status-Status}\t${Maintainer}\t${Package}\t${Version}\n' |
        awk -F '\t' '$1 == "installed" && tolower($2) ~ /nvidia\.com/ {print $3, $4}' | sort
}

before=$(cuda_packages)
if [ -z "$before" ]; then
    echo "mpi: expected a base image with CUDA packages, found none; choose another base" >&2
    exit 1
fi
# shellcheck disable=SC2046 # one word per package
apt-mark hold $(printf '%s\n' "$before" | cut -d' ' -f1) >/dev/null

away=$(mktemp -d)
back() {
    find "$away" -type f -exec mv -t /etc/apt/sources.list.d {} +
    rmdir "$away"
}
trap back EXIT
for source in /etc/apt/sources.list.d/*; do
    if [ -f "$source" ] && { echo "$source" | grep -qiE 'cuda|nvidia' || grep -qiE 'cuda|nvidia' "$source"; }; then
        mv "$source" "$away"
    fi
done

wanted=
for package in "$@"; do wanted="$wanted $package${version:+=$version}"; done
apt-get update -qq
# shellcheck disable=SC2086 # one word per package
if ! apt-get install -y -qq --no-install-recommends $wanted; then
    echo "mpi: expected$wanted beside the held CUDA packages, found no way; see above, and set MPI_VERSION_PIN" >&2
    exit 1
fi

after=$(cuda_packages)
if [ "$after" != "$before" ]; then
    echo "mpi: expected CUDA as before ($(echo "$before" | tr '\n' ';')), found ($(echo "$after" | tr '\n' ';'))" >&2
    exit 1
fi
