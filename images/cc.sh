#!/bin/sh
# A server has no compiler. Triton asks for one when it first sees a GPU, always for the same C file of its own: that one
# images/drivers.sh compiled when the image was built, and here it is handed out. Anything else is refused, clearly.
#
#   CC=cc.sh, called as a compiler is: cc.sh SOURCE.c … -o FILE
set -eu
source=
out=
while [ $# -gt 0 ]; do
    case $1 in
    -o)
        out=$2
        shift
        ;;
    *.c) source=$1 ;;
    esac
    shift
done
if [ ! -f "$source" ] || [ -z "$out" ]; then
    echo "cc: expected SOURCE.c and -o FILE, found something else; this image has no compiler" >&2
    exit 1
fi
compiled=/opt/yap/venv/lib/compiled/$(sha256sum "$source" | cut -d' ' -f1).so
if [ ! -f "$compiled" ]; then
    echo "cc: expected a source that was compiled with the image, found $source; this image has no compiler" >&2
    exit 1
fi
exec cp "$compiled" "$out"
