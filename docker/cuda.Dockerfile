# estep for NVIDIA GPUs, with vLLM. Linted, but not built in CI: docs/containers.md.
#   docker build -f docker/cuda.Dockerfile -t estep:cuda .
# torch's wheels bring the CUDA libraries; the host brings the driver, through the NVIDIA container toolkit.
FROM python:3.11.14-slim-bookworm

ARG TORCH=2.13.0
# One of PyTorch's CUDA indexes, for a driver that is too old for the default build.
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

# Triton compiles its launchers with gcc. Debian keeps one version of it, so there is none to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/estep
COPY pyproject.toml README.md LICENSE ./
COPY scripts/install_torch.sh scripts/
COPY src src
# Without constraints.txt: its versions are those of vLLM's CPU build, and some exclude the build for GPUs. pyproject.toml has the
# ranges that estep was tested with.
# hadolint ignore=DL3013
RUN sh scripts/install_torch.sh python "${TORCH}" "${TORCH_INDEX}" \
    && python -m pip install '.[report,api,vllm]'

RUN useradd --create-home --uid 1000 estep \
    && mkdir -p /work/runs /cache \
    && chown -R estep:estep /work /cache
USER 1000
WORKDIR /work
ENV ESTEP_CACHE=/cache/estep HF_HOME=/cache/huggingface \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME ["/work/runs", "/cache"]
ENTRYPOINT ["estep"]
CMD ["--help"]
