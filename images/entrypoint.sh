#!/bin/sh
# Start the image's program. What will touch the engine is preceded by the quick part of the preflight; when that fails,
# a server's settings are checked as well, so that everything wrong is told at once.
set -eu
# Nobody is connected while the preflight runs: a server that is told to go has not failed.
[ "$YAP_PROGRAM" = runtime ] && stopped=0 || stopped=143
trap 'exit "$stopped"' TERM INT
case ${1:-serve} in
serve | run | quantize | build | validate)
    # Beside the shell, which acts on a signal only when no command runs before it.
    python /opt/yap/bin/preflight.py "$YAP_LANE" --start &
    wait "$!" || {
        status=$?
        [ "$YAP_PROGRAM" != runtime ] || python -m runtime settings --check || status=$?
        exit "$status"
    }
    ;;
esac
trap - TERM INT
exec python -m "$YAP_PROGRAM" "$@"
