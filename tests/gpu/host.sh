#!/usr/bin/env bash
# On a GPU host that reaches no registry: lay out what carry.py packed, and run everything.sh with it.
#
#     bash tests/gpu/host.sh start [LANE[@GPUS] …]   lays out, starts both lanes or those named, and returns
#     bash tests/gpu/host.sh watch SECONDS OUT       tells what has ended, and packs all logs into OUT/logs.tgz as it goes
#
# With two GPUs `prove` and `measure` run at once, each with half of the cores; with one, one after the other. Lanes that
# name GPUs run at once, each with its share of the cores, and those with a plus between one after the other: `start doors@0
# tuning@1 kernels+tuning-awq@2`. What ran before is ended by the next `start`, and not laid out again. PIECES is where the pieces lie, SITE a folder with vLLM for the host's torch, BUILD one with the quantizers, ROOM one for everything.
set -euo pipefail
cd "$(dirname "$0")/../.."
# Where bytecode is not kept, importing vLLM takes 20 s each time, and what is measured of starts is that.
unset PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX
room=${ROOM:-/tmp/yap} site=${SITE:-/tmp/site} build=${BUILD:-/tmp/build} python=${PYTHON:-python3}

lay() {
    [ ! -e "$room/laid" ] || return 0
    mkdir -p "$room/more" "$room/logs"
    {
        date
        lscpu
        nvidia-smi
        df -h
        free -g
    } >"$room/logs/machine" 2>&1 || true
    cat "${PIECES:-/tmp/pieces-more}"/piece* | tar -xz -C "$room/more"
    local packages
    packages=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    # Candidates and stages are processes in isolated mode, where PYTHONPATH does not count.
    printf '%s\n' "$site" "$room/more/site" "$room/repo/client" >"$packages/yap.pth"
    "$python" -m compileall -q -j 0 "$site" "$build" "$room/more/site" "$packages"/{torch,transformers,triton} \
        >"$room/logs/compileall" 2>&1 || true # some packages carry files for other Pythons
    # The pipeline asks the quantizer's interpreter in isolated mode, where PYTHONPATH does not count.
    "$python" -m venv --without-pip "$room/quantize"
    printf '%s\n' "$build" "$room/more/site" "$site" "$packages" \
        >"$("$room/quantize/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/host.pth"
    touch "$room/laid"
}

surroundings() {
    local folder path=$room/more/site/bin
    # Without a compiler, as in the image: whoever calls one finds out here.
    while read -rd : folder; do
        [ -e "$folder/nvcc" ] || path+=:$folder
    done <<<"$PATH:"
    export PATH=$path PYTHONPATH=$site:$room/more/site PYTHON=$python
    export TOKENIZER=$room/more/tokenizer QUANTIZE_PYTHON=$room/quantize/bin/python
    export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_USE_FLASHINFER_SAMPLER=${VLLM_USE_FLASHINFER_SAMPLER:-0} VLLM_USE_DEEP_GEMM=${VLLM_USE_DEEP_GEMM:-0}
    [ ! -e "$room/more/tool" ] || export CLASSIFIER=$room/more/tool
}

end_earlier() {
    local session
    [ -e "$room/sessions" ] || return 0
    while read -r session; do pkill -KILL -s "$session" || true; done <"$room/sessions"
    rm "$room/sessions"
}

# Each lane in a session of its own, so that all of it can be ended, engines too.
start_at_once() { # WORK LANE@GPUS …
    local work=$1 lane share turns first=0
    shift
    share=$(($(nproc) / $#))
    export -f in_turn
    for lane; do
        IFS=+ read -ra turns <<<"${lane%@*}"
        CUDA_VISIBLE_DEVICES=${lane#*@} setsid taskset -c "$first-$((first + share - 1))" \
            bash -c 'in_turn "$@"' in_turn "$room/logs" "$work" "${turns[@]}" \
            >"$room/logs/${lane%@*}.log" 2>&1 </dev/null &
        echo $! >>"$room/sessions"
        first=$((first + share))
    done
}

in_turn() { # LOGS WORK LANE …
    local logs=$1 work=$2 lane
    shift 2
    for lane; do bash tests/gpu/everything.sh "$lane" "$logs/$lane" "$work"; done
}

start() { # LANE …
    local work half last lane lanes=("$@")
    [ $# -gt 0 ] || lanes=(prove measure)
    [[ "${lanes[*]}" == *@* ]] || IFS='+ ' read -ra lanes <<<"${lanes[*]}"
    mkdir -p "$room"
    end_earlier
    # A copy: what is measured must not change under it.
    rm -rf "$room/repo" && mkdir "$room/repo" && tar -c --exclude=.git --exclude=.gpu . | tar -x -C "$room/repo"
    lay
    surroundings
    printf '%s\n' "${lanes[@]%@*}" | tr + '\n' >"$room/lanes"
    while read -r lane; do
        [ ! -e "$room/logs/$lane" ] || mv "$room/logs/$lane" "$room/logs/$lane.$(date +%H%M%S)"
    done <"$room/lanes"
    work=$([ -d /dev/shm ] && echo /dev/shm/yap || echo "$room/work")
    last=$(($(nproc) - 1)) half=$(($(nproc) / 2))
    mkdir -p "$work"
    rm -f "$work/image-root.done" # the image gets this checkout, too
    cd "$room/repo"
    if [[ "${lanes[*]}" == *@* ]]; then
        start_at_once "$work" "${lanes[@]}"
    elif [ "${lanes[*]}" = "prove measure" ] && [ "$(nvidia-smi -L | wc -l)" -ge 2 ]; then
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
        sleep 5
        tar -cz -C "$room" logs >"$out/logs.part" 2>/dev/null || true # a log may grow while it is read
        mv "$out/logs.part" "$out/logs.tgz"
        [ -n "$(unfinished)" ] || break
    done
    tail -n 40 "$room"/logs/*/steps
}

unfinished() {
    local lane
    while read -r lane; do
        grep -qs ': over' "$room/logs/$lane/steps" || echo "$lane"
    done <"$room/lanes"
}

case ${1:-} in
start) start "${@:2}" ;;
watch) watch "${2:-}" "${3:-}" ;;
*)
    echo "host.sh: expected start or watch, found ${1:-nothing}" >&2
    exit 64
    ;;
esac
