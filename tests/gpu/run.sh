#!/usr/bin/env bash
# The tests and figures that need a GPU, in one command: bash tests/gpu/run.sh [FOLDER for the logs]
#
# Needs Python 3.11 or newer with torch (CUDA), numpy, safetensors and pytest; no network, no data. About nine minutes on an H100.
# AUTORESEARCH_PYTHON names the interpreter, else python3. Further arguments go to pytest: bash tests/gpu/run.sh /tmp/logs -k audit
set -uo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.." || exit 1
python=${AUTORESEARCH_PYTHON:-python3}
out=${1:-$(mktemp -d)}
mkdir -p "$out"
export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
nvidia-smi || exit 3
"$python" -c 'import torch; print("torch", torch.__version__, torch.cuda.get_device_name())' || exit 3
"$python" -m pytest -q -ra -p no:cacheprovider tests/gpu --gpu -s "${@:2}" 2>&1 | tee "$out/gpu-tests.log"
code=${PIPESTATUS[0]}
echo "gpu tests: exit code $code; logs in $out"
exit "$code"
