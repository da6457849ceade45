#!/bin/sh
# Installs the CPU build of torch if pip finds one, else the index's default build.
# usage: install_torch.sh PYTHON VERSION [INDEX]
#
# torch is installed first and alone: the dependency resolver would otherwise choose a build with several gigabytes of
# CUDA libraries.
set -eu
python=$1 version=$2 index=${3:-}
if "$python" -c 'import torch' 2>/dev/null; then
    exit 0
fi
if [ -n "$index" ]; then
    exec "$python" -m pip install --quiet --index-url "$index" "torch==$version"
fi
"$python" -m pip install --quiet "torch==$version+cpu" 2>/dev/null ||
    exec "$python" -m pip install --quiet "torch==$version"
