#!/bin/sh
# Installs a release, without a network and without a compiler: `sudo sh install.sh` in its folder, or
# `make install RELEASE=tar`. An `edge` that is installed checks it; the first time it checks itself.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
if /opt/edge/current/bin/edge --version >/dev/null 2>&1; then
    edge_update() { exec /opt/edge/current/bin/edge update "$@"; }
else  # Python's own modules are enough for it: from a checkout, or out of the release's wheel
    code=$(dirname "$here")
    for wheel in "$here"/wheels/omni_edge-*.whl; do [ ! -e "$wheel" ] || code=$wheel; done
    edge_update() { exec "${PYTHON:-/usr/bin/python3}" -I -c 'import sys
sys.path.insert(0, sys.argv[1])
from edge.update import main
sys.exit(main(sys.argv[2:]))' "$code" "$@"; }
fi
if [ -n "${RELEASE:-}" ]; then
    release=$RELEASE
    unset RELEASE
    edge_update "$release"
fi
cd "$here"
{ ls SHA256SUMS SHA256SUMS.minisig 2>/dev/null || true; sed 's/^[^ ]*  //' SHA256SUMS; } |
    tar c --no-recursion --files-from=- | edge_update -
