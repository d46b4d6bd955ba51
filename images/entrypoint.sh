#!/bin/sh
# Start the image's program. What will touch the engine is preceded by the quick part of the preflight; when that fails,
# a server's settings are checked as well, so that everything wrong is told at once.
set -eu
case ${1:-serve} in
serve | run | quantize | build | validate)
    python /opt/yap/bin/preflight.py "$YAP_LANE" --start || {
        status=$?
        [ "$YAP_PROGRAM" != runtime ] || python -m runtime settings --check || status=$?
        exit "$status"
    }
    ;;
esac
exec python -m "$YAP_PROGRAM" "$@"
