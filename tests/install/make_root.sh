#!/bin/sh
# make_root.sh RELEASE CACHE ROOT [PACKAGES]: ROOT becomes the smallest file system of a release of
# Debian or Ubuntu ("trixie") with these packages (a,b); CACHE keeps it for the next time. Needs root,
# and the first time a network.
set -eu
release=$1 cache=$2 root=$3 packages=${4:-}
if [ ! -e "$cache/root.tar" ]; then
    command -v mmdebstrap >/dev/null ||
        { apt-get -qq update && apt-get -qq install --no-install-recommends mmdebstrap; } >/dev/null
    echo "make_root: fetching $release" >&2
    mkdir -p "$cache"
    mmdebstrap --quiet --format=tar --variant=minbase ${packages:+--include="$packages"} "$release" "$cache/root.tar.new"
    mv "$cache/root.tar.new" "$cache/root.tar"
fi
mkdir -p "$root"
tar xf "$cache/root.tar" -C "$root"
