#!/bin/sh
# install_js_clients.sh FOLDER: OpenAI's JavaScript SDK and the WebSocket library that it wants, for
# the test of docs/robot.md. Without Node and npm, and without root or apt to get them, or without
# the registry, that test is skipped, with this reason.
set -eu
wanted="openai@6.49.0 ws@8.23.0"
if [ "$(cat "$1/installed" 2>/dev/null)" = "$wanted" ]; then exit 0; fi
if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "install nodejs and npm to run the test of OpenAI's JavaScript SDK" >&2
        exit 0
    fi
    apt-get install --quiet --yes --no-install-recommends nodejs npm >/dev/null 2>&1 || {
        apt-get update --quiet >/dev/null
        apt-get install --quiet --yes --no-install-recommends nodejs npm >/dev/null
    }
fi
mkdir -p "$1"
# Node has a list of authorities of its own; here those count that the machine trusts.
authorities=/etc/ssl/certs/ca-certificates.crt
if [ -e $authorities ]; then export NODE_EXTRA_CA_CERTS="${NODE_EXTRA_CA_CERTS:-$authorities}"; fi
# shellcheck disable=SC2086  # a list of packages
if timeout 120 npm install --prefix "$1" --no-save --no-audit --no-fund --ignore-scripts \
    --fetch-retries 1 --fetch-timeout 20000 --loglevel error $wanted >/dev/null; then
    echo "$wanted" >"$1/installed"
else
    echo "npm could not install $wanted: the test of OpenAI's JavaScript SDK will be skipped" >&2
fi
