# What every image stands on: CUDA, Python, Open MPI, an init, and a user. bake.hcl builds it twice: `base-devel` on
# NVIDIA's devel image, for the pipeline and for building environments; `base-runtime` on its smallest, for serving.
FROM cuda

ARG KIND
ARG PYTHON_VERSION
ARG MPI_VERSION_PIN

ENV DEBIAN_FRONTEND=noninteractive \
    LANG=C.UTF-8 \
    PYTHON=/usr/bin/python${PYTHON_VERSION}

RUN --mount=type=bind,source=images/mpi.sh,target=/tmp/mpi.sh <<RUN
set -eu
python="python$PYTHON_VERSION libpython$PYTHON_VERSION"
mpi='libopenmpi3 openmpi-bin'
more='ca-certificates libnuma1 tini'
if [ "$KIND" = devel ]; then
    python="$python python$PYTHON_VERSION-venv python$PYTHON_VERSION-dev"
    mpi="$mpi libopenmpi-dev"
    more="$more g++ make"
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends $python $more
sh /tmp/mpi.sh "$MPI_VERSION_PIN" $mpi
ldconfig
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
# Group 0 owns what must be writable, so that an arbitrary user of that group can run the image.
useradd --uid 2000 --gid 0 --no-create-home --home-dir /cache --shell /usr/sbin/nologin yap
install -d -o 2000 -g 0 -m 2775 /cache
RUN

COPY images/preflight.py /opt/yap/bin/preflight.py
RUN ${PYTHON} /opt/yap/bin/preflight.py base
