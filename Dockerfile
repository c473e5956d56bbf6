# syntax=docker/dockerfile:1
FROM python:3.11-slim AS builder
COPY --from=ghcr.io/astral-sh/uv:0.9.28 /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
RUN uv venv /opt/headrace
ENV VIRTUAL_ENV=/opt/headrace
COPY requirements.lock /src/
RUN --mount=type=cache,target=/root/.cache/uv uv pip install --require-hashes -r /src/requirements.lock
COPY pyproject.toml README.md LICENSE /src/
COPY schemas /src/schemas
COPY topics /src/topics
COPY agents /src/agents
COPY headrace /src/headrace
# The lock holds everything that it needs, hatchling aside.
RUN --mount=type=cache,target=/root/.cache/uv uv pip install --no-deps /src

FROM python:3.11-slim
# PyPI's torch brings its CUDA libraries; the driver comes from the host by the NVIDIA container runtime.
ENV PATH=/opt/headrace/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 \
    HOME=/tmp \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HEADRACE_WORKER__HOST=0.0.0.0 \
    HEADRACE_WORKER__DATA_DIR=/tmp/headrace
COPY --from=builder /opt/headrace /opt/headrace
# By number, so that Kubernetes can check that it is not root.
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["headrace"]
