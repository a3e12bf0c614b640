#!/usr/bin/env bash
# Build a TensorRT engine from an exported ONNX graph, on the machine it will run on (there is no cross-build).
#   deploy/build_engine.sh --onnx model.onnx --precision int8
# The logic is in build_engine.py; `--help` lists every option.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$(command -v python3 || true)}
if [ -z "$python" ]; then
  echo "build_engine: no python3 on PATH; install it or set PYTHON=/path/to/python3" >&2
  exit 2
fi
exec "$python" "$here/build_engine.py" "$@"
