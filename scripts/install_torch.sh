#!/bin/sh
# Installs torch for the CPU where pip finds such a build, else the index's own build.
# usage: install_torch.sh PYTHON VERSION [INDEX]
#
# torch comes first and alone: a dependency resolver that is free to choose would fetch a newer build with several
# gigabytes of CUDA libraries.
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
