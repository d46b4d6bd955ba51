#!/usr/bin/env bash
# Every measurement of this folder, in the order of their worth; logs and results go to OUT.
#
#     bash tests/gpu/everything.sh measure OUT WORK     the 8B shape: speed, behaviour, starts, roofline (26 minutes)
#     bash tests/gpu/everything.sh prove OUT WORK       the embedded models: the pipeline, the protocol, classifiers (14)
#     bash tests/gpu/everything.sh doors OUT WORK       64 and 256 streams: the engine alone and HTTP (8)
#     bash tests/gpu/everything.sh ready OUT WORK       prepared replies, starts, prefixes from host memory (7)
#     bash tests/gpu/everything.sh starts OUT WORK      starts by phase, what each thread does in one, and held against others (5)
#     bash tests/gpu/everything.sh tuning OUT WORK      candidates of `--tune` on the 8B shape (9)
#     bash tests/gpu/everything.sh tuning-fp8 OUT WORK  the same on its weights in FP8, `tuning-awq` in 4 bits (10)
#     bash tests/gpu/everything.sh image-tuning OUT WORK  candidates again, by the image's own engine; `image-tuning-fp8`, `image-tuning-awq`
#     bash tests/gpu/everything.sh targets OUT WORK     tuned for latency and for throughput, beside the engine as vLLM ships it (14)
#     bash tests/gpu/everything.sh targets-fp8 OUT WORK  the same with weights in FP8 (16)
#     bash tests/gpu/everything.sh image-targets OUT WORK  both inside the image; `image-targets-fp8`
#     bash tests/gpu/everything.sh image-later OUT WORK  graphs captured after readiness: how soon, how fast, and what is said (4)
#     bash tests/gpu/everything.sh image-starts OUT WORK  starts of the image's own runtime, with all graphs and with a few (5)
#     bash tests/gpu/everything.sh kernels OUT WORK     one stream with each kernel for weights of 8 and 4 bits, and of attention (6)
#     bash tests/gpu/everything.sh image-kernels OUT WORK  the same by the image's own engine
#     bash tests/gpu/everything.sh image-decoding OUT WORK  a step of every stream, by how graphs are captured, and what it is made of (2); `image-decoding-fp8`
#     bash tests/gpu/everything.sh weights-fp8 OUT WORK  the model in FP8, for lanes behind it, while the image is still carried (2)
#     bash tests/gpu/everything.sh image OUT WORK       the image that image/carry.py packed: from its stack check to its tables (11)
#     bash tests/gpu/everything.sh fleet OUT WORK       a server a GPU behind the router, one of them killed (6)
#
# All of the last but `image` itself, `image-later`, both `kernels` and both `image-decoding` share what they measure with: whichever comes first makes it. `host.sh` gives each GPUs of its own.
# WORK is a folder for 60 GB, best on a tmpfs. Where there are two GPUs, run both at once, each with a
# CUDA_VISIBLE_DEVICES and cores of its own (`taskset`), `prove` by `setsid`: while speed is measured, `measure` stops the
# session whose number PAUSES names. With WAITS=1, `prove` waits for the model that `measure` makes.
# Less than everything: SKIP names steps to leave out, STREAMS how many streams (1 64 256), CONTENDERS who is measured
# with them (alone runtime openai), SECTIONS what of the behaviour (all), CANDIDATES and MINUTES what is tuned and for how long
# (8), PASSES, PARTS and ROUTERS how often, what and with whom the fleet does (3, router kill, 2), SEQUENCES how many replies at once the artifact is made for (320 for doors, ready, starts and fleet), CHOSEN
# the candidate of `--tune` with whose options artifacts serve (none), LATENCY and THROUGHPUT those of `targets`, KERNELS which of its tables (products attention).
# MODES which graphs `image-later` is about (FULL, FULL_AND_PIECEWISE). WAYS which ways of `decoding.py` both `image-decoding` measure, with `;` between them.
# ROUNDS how often each way of `image-starts` is started (3). `image-later` wants `inputs/carry.py --chat`.
# COMES names a file that is there once all pieces of the image are; lanes that need them wait for it.
# TOKENIZER names a folder with a tokenizer and a chat template, CLASSIFIER one with a sequence classifier in float16;
# without it `measure`, `doors`, `ready` and `fleet` serve the chat model alone.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
lane=${1:?measure or prove} out=${2:?a folder for logs} work=${3:?a folder for 60 GB}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
mkdir -p "$out" "$work"
out=$(realpath "$out") model=$work/8b image_room=$work-image

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

# once NAME COMMAND …: done by the lane that comes first, while the others wait for it.
once() {
    local name=$1 lock status=0
    shift
    exec {lock}>"$work/$name.lock"
    flock "$lock"
    if [ ! -e "$work/$name.done" ]; then
        "$@" {lock}>&- && touch "$work/$name.done"
        status=$?
    fi
    exec {lock}>&-
    return "$status"
}

parts() {
    if [ -n "${CLASSIFIER:-}" ] && [ ! -e "$work/tool" ]; then
        cp -r "$CLASSIFIER" "$work/tool.part" && mv "$work/tool.part" "$work/tool"
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
    sealed ${SEQUENCES:+--sequences "$SEQUENCES"}
    touch "$out/streams.log"
    [ -z "${PAUSES:-}" ] || quiet &
    step streams 900 "$python" tests/gpu/streams.py "$model" --streams "${streams[@]}" \
        --only "${contenders[@]}" --profile "$out" --json "$out/streams.json"
    touch "$out/quiet-over"
    # Its contenders take turns, so the other lane may go on: it disturbs both alike.
    step first-token 500 "$python" tests/gpu/first_token.py "$model"
    step behaviour 700 "$python" tests/gpu/behaviour.py "$model" "${sections[@]}" --soak-seconds 150
    step cold-start 300 "$python" tests/gpu/cold_start.py "$model" --only with both
    step roofline 300 "$python" tests/gpu/limits/roofline.py "$model"
    roofline_quantized
    classifiers
    wait
}

sealed() {
    local tool=()
    [ ! -e "$work/tool" ] || tool=(--tool "$work/tool")
    step artifact 400 "$python" tests/gpu/inputs/make_artifact.py "$model" "${tool[@]}" ${CHOSEN:+--chosen "$CHOSEN"} "$@"
}

shared() {
    local shape="${SEQUENCES:-320} sequences, ${CHOSEN:-plain options}"
    once parts parts && once artifact sealed --sequences "${SEQUENCES:-320}" || return
    # One artifact for all lanes: another one is not made in its place.
    [ -e "$work/artifact.shape" ] || echo "$shape" >"$work/artifact.shape"
    [ "$(cat "$work/artifact.shape")" = "$shape" ] || {
        echo "artifact: expected $shape, found $(cat "$work/artifact.shape")" | tee -a "$out/steps"
        return 1
    }
}

doors() {
    local streams contenders
    read -ra streams <<<"${STREAMS:-64 256}"
    read -ra contenders <<<"${CONTENDERS:-alone http}"
    shared || return
    step doors 600 "$python" tests/gpu/streams.py "$model" --streams "${streams[@]}" --only "${contenders[@]}" \
        --bursts --json "$out/doors.json"
}

ready() {
    shared || return
    step prepared 200 "$python" tests/gpu/prepared.py "$model"
    step cold-start 150 "$python" tests/gpu/cold_start.py "$model" --only with both
    step ways 300 "$python" tests/gpu/cold_start.py "$model" --only ways --rounds 1
    step offload 300 "$python" tests/gpu/offload.py "$model"
}

starts() {
    shared || return
    step cold-start 300 "$python" tests/gpu/cold_start.py "$model" --only with both --profile "$out/start.json"
    gzip -f "$out/start.json"
    step ways 300 "$python" tests/gpu/cold_start.py "$model" --only ways --rounds 1
}

# tuned METHOD FOLDER CANDIDATES
tuned() {
    step tune 900 "$python" tests/gpu/tune.py "$2" --method "$1" --minutes "${MINUTES:-8}" \
        --candidates "${CANDIDATES:-$3}" --json "$out/tune.json"
}

tuning() {
    once parts parts || return
    # Not the artifact's own folder, to which another lane adds what it compiles.
    tuned none "$work/8b-source" "full graphs, steps of 512, steps of 1,024"
}

tuning-fp8() {
    once parts parts || return
    quantized_8b fp8 && tuned fp8 "$work/q/8b-fp8" "full graphs, norms fused with quantizing, steps of 512"
}

tuning-awq() {
    once parts parts || return
    quantized_8b awq && tuned awq "$work/q/8b-awq" "Machete, Marlin, full graphs, steps of 512"
}

# The image's root file system, and this checkout in it; whichever lane comes first lays it out. Once unpacked it stays.
image_root() {
    local steps=(unpack app drivers)
    [ ! -e "$image_room/unpacked" ] || steps=(app)
    until [ -z "${COMES:-}" ] || [ -e "$COMES" ]; do sleep 1; done
    once image-root step image-root 300 "$python" tests/gpu/image/prove.py "$out/root" --room "$image_room" --steps "${steps[@]}" &&
        touch "$image_room/unpacked"
}

# in_image METHOD FOLDER: what `inside` runs a command with, the folder at /model and what is told at /told.
in_image() {
    image_root || return
    # The image's user is another one.
    chmod -R a+rX "$2" && mkdir -p "$out/told" "$work/reached/$lane" && chmod 777 "$out/told" "$work/reached/$lane"
    inside=("$python" tests/gpu/image/container.py --root "$image_room/root" --image "$image_room/image.json"
        --bind "$image_room/cache:/cache" --bind "$image_room/repo:/repo:ro" --bind "$(realpath "$2"):/model:ro" --bind "$out/told:/told"
        --bind "$work/reached:$work/reached" --env PYTHONPATH=/opt/yap/app:/repo:/repo/client --env HF_HUB_OFFLINE=1
        --env VLLM_USE_FLASHINFER_SAMPLER=0 --env VLLM_USE_DEEP_GEMM=0) # which compile; the runtime never uses them
    inside+=(${CUDA_VISIBLE_DEVICES:+--env "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES"} -- python)
}

# image_tuned METHOD FOLDER CANDIDATES: as `tuned`, inside the image.
image_tuned() {
    local inside
    in_image "$1" "$2" || return
    step tune 900 "${inside[@]}" /repo/tests/gpu/tune.py /model --method "$1" --minutes "${MINUTES:-9.5}" \
        --candidates "${CANDIDATES:-$3}" --json /told/tune.json
}

image-tuning() {
    once parts parts || return
    image_tuned none "$work/8b-source" "full graphs, steps of 512"
}

image-tuning-fp8() {
    once parts parts || return
    quantized_8b fp8 && image_tuned fp8 "$work/q/8b-fp8" "steps of 512, norms fused with quantizing, attention fused with quantizing"
}

image-tuning-awq() {
    once parts parts || return
    quantized_8b awq && image_tuned awq "$work/q/8b-awq" "Machete, Marlin's products, full graphs"
}

# What options of `--tune` are to reach. LATENCY and THROUGHPUT are the candidates that won for each goal.
reached() { # METHOD FOLDER SCRIPTS TOLD PYTHON …
    local method=$1 scripts=$3 told=$4 goal won streams contenders made=()
    read -ra streams <<<"${STREAMS:-1 64 256}"
    read -ra contenders <<<"${CONTENDERS:-vllm runtime}"
    for goal in latency throughput; do
        won=${LATENCY:-full graphs, steps of 512 tokens}
        [ "$goal" = latency ] || won=${THROUGHPUT:-full graphs}
        made+=("$work/reached/$lane/$goal")
        rm -rf "${made[-1]}" && mkdir -p "$work/reached/$lane" && cp -al "$2" "${made[-1]}" && chmod 777 "${made[-1]}"
        step "artifact-$goal" 400 "${@:5}" "$scripts/inputs/make_artifact.py" "${made[-1]}" --method "$method" --chosen "$won" || return
    done
    step streams 1100 "${@:5}" "$scripts/streams.py" "${made[@]}" --streams "${streams[@]}" --only "${contenders[@]}" --json "$told/streams.json"
}

targets() {
    once parts parts || return
    reached none "$work/8b-source" tests/gpu "$out" "$python"
}

targets-fp8() {
    once parts parts || return
    quantized_8b fp8 && reached fp8 "$work/q/8b-fp8" tests/gpu "$out" "$python"
}

# image_reached METHOD FOLDER: as `reached`, by the image's own runtime and engine.
image_reached() {
    local inside
    in_image "$1" "$2" && reached "$1" "$2" /repo/tests/gpu /told "${inside[@]}"
}

image-targets() {
    once parts parts || return
    image_reached none "$work/8b-source"
}

image-targets-fp8() {
    once parts parts || return
    quantized_8b fp8 && image_reached fp8 "$work/q/8b-fp8"
}

quantized_8b() { # fp8 or awq
    [ ! -e "$work/q/8b-$1/config.json" ] || return 0
    AWQ_CACHE_DIR=$work/cache-8b-$1 AWQ_CALIB_DATASET=embedded AWQ_NSAMPLES=${AWQ_NSAMPLES_8B:-8} AWQ_SEQLEN=${AWQ_SEQLEN:-256} \
        step "quantize-8b-$1" 400 "$python" -m pipeline quantize --vllm "$1" "$work/8b-source" --out "$work/q/8b-$1"
}

# A real model, for graphs that are captured after readiness; vLLM 0.31 alone can.
image-later() {
    local inside mode
    mkdir -p "$work/embedded"
    once embedded step embedded 200 "$python" -m pipeline.embedded chat "$work/embedded/chat" || return
    in_image none "$work/embedded/chat" || return
    for mode in ${MODES:-FULL}; do
        step "later-$mode" 400 "${inside[@]}" /repo/tests/gpu/later_graphs.py /model --streams 512 --mode "$mode"
    done
}

image-starts() {
    local inside served=$work/reached/image-starts/artifact
    once parts parts || return
    in_image none "$work/8b-source" || return
    if [ -e "$work/reached/image-targets/latency/build_metadata.json" ]; then
        served=$work/reached/image-targets/latency # what that lane made, whatever LATENCY says now
        echo "artifact: that of image-targets" >>"$out/steps"
    else
        rm -rf "$served" && cp -al "$work/8b-source" "$served" && chmod 777 "$served"
        step artifact 400 "${inside[@]}" /repo/tests/gpu/inputs/make_artifact.py "$served" --chosen "${LATENCY:-full graphs, steps of 512 tokens}" || return
    fi
    step starts 500 "${inside[@]}" /repo/tests/gpu/cold_start.py "$served" --only ways --ways "as it is" "all graphs" --rounds "${ROUNDS:-3}"
}

kernels() {
    local of
    for of in ${KERNELS:-products attention}; do
        step "kernels-$of" 400 "$python" tests/gpu/limits/kernels.py --of "$of" --tokenizer "${TOKENIZER:?a folder}" --logs "$out"
    done
}

image-kernels() {
    local inside of
    in_image none "${TOKENIZER:?a folder}" || return
    for of in ${KERNELS:-products attention}; do
        step "kernels-$of" 400 "${inside[@]}" /repo/tests/gpu/limits/kernels.py --of "$of" --tokenizer /model --logs /told
    done
}

# decoding WEIGHTS
decoding() {
    local inside ways
    IFS=";" read -ra ways <<<"${WAYS:-}"
    in_image none "${TOKENIZER:?a folder}" || return
    inside+=(/repo/tests/gpu/limits/decoding.py --tokenizer /model --logs /told --weights "$1")
    step decoding 900 "${inside[@]}" ${WAYS:+--ways "${ways[@]}"}
    step decoding-long 300 "${inside[@]}" --ways "full graphs, cut up" "full graphs" --streams 256 --long
}

image-decoding() {
    decoding bf16
}

image-decoding-fp8() {
    decoding fp8
}

weights-fp8() {
    once parts parts && quantized_8b fp8
}

image() {
    local streams contenders
    read -ra streams <<<"${STREAMS:-64 256}"
    read -ra contenders <<<"${CONTENDERS:-alone runtime openai}"
    image_root || return
    step image 1500 "$python" tests/gpu/image/prove.py "$out" --room "$image_room" --steps probe stack start torch model artifact check inspect serve \
        --layers "${LAYERS:-32}" ${CHOSEN:+--chosen "$CHOSEN"} --and bash -c "
        for start in 1 2 3; do python /repo/tests/gpu/cold_start.py /artifact --only with; done
        python /repo/tests/gpu/streams.py /artifact --streams ${streams[*]} --only ${contenders[*]}"
}

fleet() {
    local streams parts routers
    read -ra streams <<<"${STREAMS:-256}"
    read -ra routers <<<"${ROUTERS:-2}"
    read -ra parts <<<"${PARTS:-router kill}"
    shared || return
    step fleet 900 "$python" tests/gpu/fleet.py "$model" --streams "${streams[@]}" --passes "${PASSES:-3}" \
        --only "${parts[@]}" --routers "${routers[@]}" --json "$out/fleet.json"
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
    quantized_8b fp8 &
    quantized_8b awq &
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
    step roofline-quantized 500 "$python" tests/gpu/limits/roofline.py "${folders[@]}"
}

case $lane in
measure | prove | doors | ready | starts | tuning | tuning-fp8 | tuning-awq | image | image-tuning | image-tuning-fp8 | image-tuning-awq | targets | targets-fp8 | image-targets | image-targets-fp8 | image-later | image-starts | kernels | image-kernels | image-decoding | image-decoding-fp8 | weights-fp8 | fleet)
    "$lane"
    ;;
*)
    echo "everything.sh: expected measure, prove, doors, ready, starts, tuning, tuning-fp8, tuning-awq, image, image-tuning, image-tuning-fp8, image-tuning-awq, targets, targets-fp8, image-targets, image-targets-fp8, image-later, image-starts, kernels, image-kernels, image-decoding, image-decoding-fp8, weights-fp8 or fleet, found $lane" >&2
    exit 64
    ;;
esac
echo "$lane: over" >>"$out/steps"
