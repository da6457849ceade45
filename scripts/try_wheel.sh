#!/bin/sh
# Installs the wheel of dist/ in an empty environment, and runs the demo with few questions outside of the checkout.
# usage: try_wheel.sh PYTHON TORCH_VERSION [TORCH_INDEX]
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
wheel=$(ls "$here"/dist/estep-*.whl)
empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT
"$1" -m venv "$empty/venv"
sh "$here/scripts/install_torch.sh" "$empty/venv/bin/python" "$2" "${3:-}"
"$empty/venv/bin/python" -m pip install --quiet -c "$here/constraints.txt" "estep[report] @ file://$wheel"
cd "$empty"
unset PYTHONPATH
PATH=$empty/venv/bin:$PATH
estep --version
estep demo --help
estep tasks >/dev/null
estep demo sums train_size=8 test_size=4 iterations=1 engine.type=transformers
ls runs/*/figure.png
