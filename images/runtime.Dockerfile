# The server: what it needs to load an artifact and answer, and nothing that could make one.
FROM environment AS trimmed

RUN --mount=type=bind,source=images/drivers.sh,target=/tmp/drivers.sh \
    --mount=type=bind,source=images/trim.sh,target=/tmp/trim.sh \
    sh /tmp/drivers.sh /opt/yap/venv && sh /tmp/trim.sh /opt/yap/venv


FROM base

ARG LANE
# On a CPU torch would compile small functions of vLLM's sampler with g++, which is not here; it runs them as they are.
ARG TORCHDYNAMO_DISABLE

COPY --from=trimmed /opt/yap/venv /opt/yap/venv
COPY images/entrypoint.sh /opt/yap/bin/entrypoint
COPY images/health.py /opt/yap/bin/health.py
COPY images/cc.sh /opt/yap/bin/cc
COPY runtime /opt/yap/app/runtime

# Compiled here, because the root file system may be read-only; checked here, because trimming may have cut too much.
RUN --mount=type=bind,source=images/libraries.sh,target=/tmp/libraries.sh \
    sh /tmp/libraries.sh /opt/yap/venv && \
    mkdir /artifact && chmod 0755 /opt/yap/bin/entrypoint /opt/yap/bin/cc && ln -s entrypoint /opt/yap/bin/yap-runtime && \
    /opt/yap/venv/bin/python -m compileall -q /opt/yap/app && \
    /opt/yap/venv/bin/python /opt/yap/bin/preflight.py "$LANE" && \
    if [ "$LANE" = vllm ] || [ "$LANE" = cpu ]; then more=', vllm.v1.engine.async_llm, vllm.v1.worker.gpu_worker'; fi && \
    PYTHONPATH=/opt/yap/app /opt/yap/venv/bin/python -c "import torch, transformers, runtime.server.service${more:-}"

# The caches of libraries follow HOME and XDG_CACHE_HOME; USER spares them the look-up of a UID that has no entry.
ENV PATH=/opt/yap/venv/bin:/opt/yap/bin:$PATH \
    PYTHONPATH=/opt/yap/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    CC=/opt/yap/bin/cc \
    HOME=/cache \
    USER=yap \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    LOG_DIR=/tmp \
    YAP_PROGRAM=runtime \
    YAP_LANE=${LANE} \
    ARTIFACT=/artifact \
    TORCHDYNAMO_DISABLE=${TORCHDYNAMO_DISABLE} \
    VLLM_NO_USAGE_STATS=1 \
    VLLM_USE_FLASHINFER_SAMPLER=0 \
    VLLM_USE_DEEP_GEMM=0

USER 2000:0
WORKDIR /opt/yap/app
VOLUME ["/cache"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=15m --retries=3 CMD ["python", "-I", "-S", "/opt/yap/bin/health.py"]
ENTRYPOINT ["tini", "--", "/opt/yap/bin/entrypoint"]
