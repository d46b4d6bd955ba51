#!/usr/bin/env bash
# Every measurement of this folder, in the order of their worth; logs and results go to OUT.
#
#     bash tests/gpu/everything.sh measure OUT WORK     the 8B shape: speed, behaviour, starts, roofline (26 minutes)
#     bash tests/gpu/everything.sh prove OUT WORK       the embedded models: the pipeline, the protocol, classifiers (14)
#
# WORK is a folder for 60 GB, best on a tmpfs. Where there are two GPUs, run both at once, each with a
# CUDA_VISIBLE_DEVICES and cores of its own (`taskset`), `prove` by `setsid`: while speed is measured, `measure` stops the
# session whose number PAUSES names. With WAITS=1, `prove` waits for the model that `measure` makes.
# Less than everything: SKIP names steps to leave out, STREAMS how many streams (1 64 256), CONTENDERS who is measured
# with them (alone runtime openai), SECTIONS what of the behaviour (all).
# TOKENIZER names a folder with a tokenizer and a chat template, CLASSIFIER one with a sequence classifier in float16.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
lane=${1:?measure or prove} out=${2:?a folder for logs} work=${3:?a folder for 60 GB}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
mkdir -p "$out" "$work"
out=$(realpath "$out") model=$work/8b

# step NAME SECONDS COMMAND …: its output to OUT/NAME.log, how it ended to OUT/steps.
step() {
    local name=$1 limit=$2 began=$SECONDS status
    shift 2
    [[ " ${SKIP:-} " != *" $name "* ]] || return 0
    timeout "$limit" "$@" >"$out/$name.log" 2>&1
    status=$?
    echo "$name: $status after $((SECONDS - began)) s" >>"$out/steps"
    return "$status"
}

parts() {
    if [ ! -e "$work/tool" ]; then
        cp -r "${CLASSIFIER:?a folder with a sequence classifier}" "$work/tool.part" && mv "$work/tool.part" "$work/tool"
    fi
    [ -e "$model" ] || step model 200 "$python" tests/gpu/inputs/make_model.py "$model" --tokenizer "${TOKENIZER:?a folder}"
    # Links: what the artifact adds to its folder must not be quantized, and nothing is copied.
    [ -e "$work/8b-source" ] || { cp -al "$model" "$work/8b-source.part" && mv "$work/8b-source.part" "$work/8b-source"; }
}

# Stop the other session while a contender that is ready has not yet told its last result.
quiet() {
    local ready told last="${streams[-1]} together"
    [ "${streams[-1]}" != 1 ] || last="1 with pauses"
    while [ ! -e "$out/quiet-over" ]; do
        ready=$(grep -c "ready after" "$out/streams.log") told=$(grep -c ", $last  " "$out/streams.log")
        pkill "$([ "$ready" -gt "$told" ] && echo -STOP || echo -CONT)" -s "$PAUSES"
        sleep 0.3
    done
    pkill -CONT -s "$PAUSES"
}

measure() {
    local streams contenders sections
    read -ra streams <<<"${STREAMS:-1 64 256}"
    read -ra contenders <<<"${CONTENDERS:-alone runtime openai}"
    read -ra sections <<<"${SECTIONS:-shadow barge-in prefix soak}"
    parts
    step artifact 400 "$python" tests/gpu/inputs/make_artifact.py "$model" --tool "$work/tool"
    touch "$out/streams.log"
    [ -z "${PAUSES:-}" ] || quiet &
    step streams 900 "$python" tests/gpu/streams.py "$model" --streams "${streams[@]}" \
        --only "${contenders[@]}" --profile "$out" --json "$out/streams.json"
    touch "$out/quiet-over"
    # Its contenders take turns, so the other lane may go on: it disturbs both alike.
    step first-token 500 "$python" tests/gpu/first_token.py "$model"
    step behaviour 700 "$python" tests/gpu/behaviour.py "$model" "${sections[@]}" --soak-seconds 150
    step cold-start 300 "$python" tests/gpu/cold_start.py "$model" --only with both
    step roofline 300 "$python" tests/gpu/roofline.py "$model"
    roofline_quantized
    classifiers
    wait
}

prove() {
    # Quantizers first: they give memory back at their end, and an engine that is starting takes that for an error.
    export AWQ_CACHE_DIR=$work/cache AWQ_NSAMPLES=${AWQ_NSAMPLES:-16} AWQ_SEQLEN=${AWQ_SEQLEN:-256}
    local method
    step quantize-fp8 300 "$python" -m pipeline quantize --vllm fp8 embedded --out "$work/q/fp8"
    step quantize-awq 400 "$python" -m pipeline quantize --vllm awq embedded --out "$work/q/awq" &
    step quantize-gptq 400 "$python" -m pipeline quantize --vllm gptq embedded --out "$work/q/gptq" &
    if [ -n "${WAITS:-}" ]; then
        while [ ! -e "$work/8b-source" ]; do sleep 1; done
    else
        parts
    fi
    AWQ_CACHE_DIR=$work/cache-8b-fp8 step quantize-8b-fp8 400 \
        "$python" -m pipeline quantize --vllm fp8 "$work/8b-source" --out "$work/q/8b-fp8" &
    AWQ_CACHE_DIR=$work/cache-8b-awq AWQ_CALIB_DATASET=embedded AWQ_NSAMPLES=8 step quantize-8b-awq 400 \
        "$python" -m pipeline quantize --vllm awq "$work/8b-source" --out "$work/q/8b-awq" &
    wait
    rm -rf "$work"/cache-8b-*
    for method in fp8 awq gptq; do
        step "run-$method" 600 "$python" -m pipeline run --vllm "$method" embedded "$work/tool" --out "$work/a/$method" &&
            cp "$work/a/$method/build_metadata.json" "$out/$method.json" &&
            YAP_TEST_ARTIFACT=$work/a/$method step "protocol-$method" 400 "$python" -m pytest -q \
                tests/integration/test_server.py -k "not commands"
    done
    classifiers
    roofline_quantized
}

# By whichever lane is through first.
classifiers() {
    [ -e "$work/a/fp8" ] && mkdir "$work/classifiers-taken" 2>/dev/null || return 0
    step classifiers 300 "$python" tests/gpu/classifiers.py "$work/a/fp8" "$work/tool" --longformer
}

# By whichever lane is through first, once the other has quantized the models.
roofline_quantized() {
    local folders=("$work/q/8b-fp8" "$work/q/8b-awq")
    [ -e "${folders[0]}" ] && [ -e "${folders[1]}" ] && mkdir "$work/roofline-taken" 2>/dev/null || return 0
    step roofline-quantized 500 "$python" tests/gpu/roofline.py "${folders[@]}"
}

case $lane in
measure | prove) "$lane" ;;
*)
    echo "everything.sh: expected measure or prove, found $lane" >&2
    exit 64
    ;;
esac
echo "$lane: over" >>"$out/steps"
