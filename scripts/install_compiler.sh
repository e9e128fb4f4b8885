#!/bin/sh
# What pip needs to compile the kernels: a C++ compiler, and the headers of the Python given.
# Without root or apt it says what to install.
set -eu
python=${1:-python3}
header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
missing=
command -v c++ >/dev/null || missing="g++"
[ -e "$header" ] || missing="$missing python3-dev"
if [ -z "$missing" ]; then exit 0; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "to compile the kernels, install: $missing" >&2
    exit 1
fi
# shellcheck disable=SC2086  # a list of packages
apt-get install --quiet --yes --no-install-recommends $missing >/dev/null 2>&1 || {
    apt-get update --quiet >/dev/null
    apt-get install --quiet --yes --no-install-recommends $missing >/dev/null
}
