# One Python environment from hashed locks, in a stage of its own. bake.hcl builds it for every environment that an image
# needs: the lanes' serving environments, their quantizers', and the embedded models.
#
# Package indexes and their credentials come as BuildKit secrets, and so does the CA bundle of a proxy that re-signs TLS.
# `wheels` is a folder of wheels that no index has, as PIP_FIND_LINKS would name it.
FROM devel

ARG VENV
ARG LOCKS
ARG CHECK

RUN --mount=type=cache,id=yap-packages,target=/root/.cache \
    --mount=type=bind,from=wheels,target=/tmp/wheels \
    --mount=type=bind,source=images/install.sh,target=/tmp/images/install.sh \
    --mount=type=bind,source=images/libraries.sh,target=/tmp/images/libraries.sh \
    --mount=type=bind,source=images/locks,target=/tmp/images/locks \
    --mount=type=secret,id=ca,target=/run/ca.pem \
    --mount=type=secret,id=pip_index_url,env=PIP_INDEX_URL \
    --mount=type=secret,id=pip_extra_index_url,env=PIP_EXTRA_INDEX_URL \
    <<RUN
set -eu
[ ! -s /run/ca.pem ] || export PIP_CERT=/run/ca.pem
export PIP_FIND_LINKS=/tmp/wheels UV_LINK_MODE=copy YAP_TOOLS_VENV=/tmp/tools
mkdir -p "$VENV"
[ -z "$LOCKS" ] || sh /tmp/images/install.sh "$VENV" $LOCKS
sh /tmp/images/libraries.sh "$VENV"
[ -z "$CHECK" ] || "$VENV/bin/python" /opt/yap/bin/preflight.py "$CHECK"
rm -rf /tmp/tools
RUN
