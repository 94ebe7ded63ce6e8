#!/usr/bin/env bash
# Makes the venv that client.py and routing.py run in, and generates the stubs into it.
#
#   setup.sh [VENV]      default: .venv beside this script
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
proto=$here/../../../proto
venv=${1:-$here/.venv}
python=$venv/bin/python

# A venv whose Python is gone, or that was made halfway, is made anew.
"$python" -m pip --version >/dev/null 2>&1 || python3 -m venv --clear "$venv"
"$python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"

generated=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -m grpc_tools.protoc -I "$proto" \
    --python_out="$generated" --grpc_python_out="$generated" \
    thrifty/location/v1/location.proto thrifty/store/v1/store.proto
