#!/bin/sh
# Start the image's program. What will touch the engine is preceded by the quick part of the stack check.
set -eu
case ${1:-serve} in
serve | run | quantize | build | validate) python /opt/yap/bin/stack.py "$YAP_LANE" --start ;;
esac
exec python -m "$YAP_PROGRAM" "$@"
