# The pipeline: the serving environment, because artifacts are proven with the engine that will serve them; the quantizer's,
# because it needs other versions; the embedded models; and the compilers of the devel base.
FROM environment

ARG LANE
ARG PYTHON_VERSION
ARG QUANTIZE_PYTHON

COPY --from=quantizer /opt/yap/quantize /opt/yap/quantize
COPY --from=embedded /opt/yap/embedded /opt/yap/embedded
COPY images/entrypoint.sh /opt/yap/bin/entrypoint
COPY runtime /opt/yap/app/runtime
COPY pipeline /opt/yap/app/pipeline

RUN chmod 0755 /opt/yap/bin/entrypoint && ln -s entrypoint /opt/yap/bin/yap-pipeline && \
    /opt/yap/venv/bin/python -m compileall -q /opt/yap/app && \
    install -d -o 2000 -g 0 -m 2775 /artifacts

# Without CUDA's folder, which the devel base has in its PATH: where vLLM finds nvcc it chooses kernels that nvcc compiles on
# demand, and the artifact would be proven, and its compile cache filled, with others than those that serve it.
ENV PATH=/opt/yap/venv/bin:/opt/yap/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/opt/yap/app:/opt/yap/embedded/lib/python${PYTHON_VERSION}/site-packages \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/cache \
    USER=yap \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    YAP_PROGRAM=pipeline \
    YAP_LANE=${LANE} \
    INFERENCE_ENGINE=${LANE} \
    QUANTIZE_PYTHON=${QUANTIZE_PYTHON} \
    VLLM_NO_USAGE_STATS=1 \
    VLLM_USE_FLASHINFER_SAMPLER=0 \
    VLLM_USE_DEEP_GEMM=0

USER 2000:0
WORKDIR /artifacts
VOLUME ["/cache", "/artifacts"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "/opt/yap/bin/entrypoint"]
