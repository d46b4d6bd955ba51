#!/usr/bin/env bash
# On a GPU host that reaches no registry: lay out what carry.py packed, and run everything.sh with it.
#
#     bash tests/gpu/host.sh start [LANE …]       lays out, starts both lanes or those named, and returns
#     bash tests/gpu/host.sh watch SECONDS OUT    tells what has ended, and packs all logs into OUT/logs.tgz as it goes
#
# With two GPUs both lanes run at once, each with half of the cores; with one, one after the other. PIECES is where the
# pieces lie, SITE a folder with vLLM for the host's torch, BUILD one with the quantizers, ROOM one for everything.
set -euo pipefail
cd "$(dirname "$0")/../.."
room=${ROOM:-/tmp/yap} site=${SITE:-/tmp/site} build=${BUILD:-/tmp/build} python=${PYTHON:-python3}

lay() {
    mkdir -p "$room/more" "$room/logs"
    {
        date
        lscpu
        nvidia-smi
        df -h
        free -g
    } >"$room/logs/machine" 2>&1 || true
    cat "${PIECES:-/tmp/pieces-more}"/piece* | tar -xz -C "$room/more"
    # A copy: what is measured must not change under it.
    mkdir -p "$room/repo" && tar -c --exclude=.git --exclude=.gpu . | tar -x -C "$room/repo"
    export PYTHONPATH=$site:$room/more/site PATH=$room/more/site/bin:$PATH PYTHON=$python
    export TOKENIZER=$room/more/tokenizer CLASSIFIER=$room/more/tool
    export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
    # Where packages keep no bytecode, importing vLLM takes 20 s each time.
    export PYTHONPYCACHEPREFIX=$room/bytecode
    local packages
    packages=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    "$python" -m compileall -q -j 0 "$site" "$build" "$room/more/site" "$packages"/{torch,transformers,triton} \
        >"$room/logs/compileall" 2>&1 || true # some packages carry files for other Pythons
    # The pipeline asks the quantizer's interpreter in isolated mode, where PYTHONPATH does not count.
    "$python" -m venv --without-pip "$room/quantize"
    printf '%s\n' "$build" "$room/more/site" "$site" "$packages" \
        >"$("$room/quantize/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/host.pth"
    export QUANTIZE_PYTHON=$room/quantize/bin/python
}

in_turn() { # LOGS WORK LANE …
    local logs=$1 work=$2 lane
    shift 2
    for lane; do bash tests/gpu/everything.sh "$lane" "$logs/$lane" "$work"; done
}

start() { # LANE …
    local work half last lanes=("$@")
    [ $# -gt 0 ] || lanes=(prove measure)
    lay
    printf '%s\n' "${lanes[@]}" >"$room/lanes"
    work=$([ -d /dev/shm ] && echo /dev/shm/yap || echo "$room/work")
    last=$(($(nproc) - 1)) half=$(($(nproc) / 2))
    cd "$room/repo"
    if [ "${#lanes[@]}" -eq 2 ] && [ "$(nvidia-smi -L | wc -l)" -ge 2 ]; then
        CUDA_VISIBLE_DEVICES=1 WAITS=1 setsid taskset -c "$half-$last" \
            bash tests/gpu/everything.sh prove "$room/logs/prove" "$work" >"$room/logs/prove.log" 2>&1 </dev/null &
        CUDA_VISIBLE_DEVICES=0 PAUSES=${PAUSES-$!} setsid taskset -c "0-$((half - 1))" \
            bash tests/gpu/everything.sh measure "$room/logs/measure" "$work" >"$room/logs/measure.log" 2>&1 </dev/null &
    else
        export -f in_turn
        setsid bash -c 'in_turn "$@"' in_turn "$room/logs" "$work" "${lanes[@]}" >"$room/logs/lanes.log" 2>&1 </dev/null &
    fi
    echo "started; logs in $room/logs"
}

watch() {
    local until=$((SECONDS + ${1:?seconds})) out=${2:?a folder}
    while [ "$SECONDS" -lt "$until" ]; do
        sleep 15
        tar -cz -C "$room" logs >"$out/logs.part" 2>/dev/null || true # a log may grow while it is read
        mv "$out/logs.part" "$out/logs.tgz"
        [ "$(cat "$room"/logs/*/steps 2>/dev/null | grep -c ': over')" -lt "$(wc -l <"$room/lanes")" ] || break
    done
    tail -n 40 "$room"/logs/*/steps
}

case ${1:-} in
start) start "${@:2}" ;;
watch) watch "${2:-}" "${3:-}" ;;
*)
    echo "host.sh: expected start or watch, found ${1:-nothing}" >&2
    exit 64
    ;;
esac
