#!/bin/sh
# install_js_clients.sh FOLDER [LOCKED]: JavaScript clients as the folder LOCKED locks them; if left
# out, OpenAI's SDK and the WebSocket library that it wants, for the test of docs/robot.md. Without
# Node and npm, and without root or apt to get them, or without the registry, their tests are
# skipped, with this reason.
set -eu
wanted=${2:-$(dirname "$0")/../tests/serve/js}
if cmp -s "$wanted/package-lock.json" "$1/installed"; then exit 0; fi
if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "install nodejs and npm to run the tests of JavaScript clients" >&2
        exit 0
    fi
    apt-get install --quiet --yes --no-install-recommends nodejs npm >/dev/null 2>&1 || {
        apt-get update --quiet >/dev/null
        apt-get install --quiet --yes --no-install-recommends nodejs npm >/dev/null
    }
fi
mkdir -p "$1"
cp "$wanted/package.json" "$wanted/package-lock.json" "$1"
# Node has a list of authorities of its own; here those count that the machine trusts.
authorities=/etc/ssl/certs/ca-certificates.crt
if [ -e $authorities ]; then export NODE_EXTRA_CA_CERTS="${NODE_EXTRA_CA_CERTS:-$authorities}"; fi
if timeout 120 npm ci --prefix "$1" --no-audit --no-fund --ignore-scripts \
    --fetch-retries 1 --fetch-timeout 20000 --loglevel error >/dev/null; then
    cp "$wanted/package-lock.json" "$1/installed"
else
    echo "npm could not install them: the tests of JavaScript clients will be skipped" >&2
fi
