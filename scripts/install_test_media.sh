#!/bin/sh
# Speech for the tests: Debian's alsa-utils ships recordings, flite speaks sentences in several
# voices. Without root or apt the tests that need them are skipped, with this reason (and fail
# where CI=true).
set -eu
missing=
[ -e /usr/share/sounds/alsa/Front_Center.wav ] || missing="alsa-utils"
command -v flite >/dev/null || missing="$missing flite"
if [ -z "$missing" ]; then exit 0; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "install $missing to run the tests on recorded and synthesized speech" >&2
    exit 0
fi
install() { apt-get install --quiet --yes --no-install-recommends $missing >/dev/null; }
install 2>/dev/null || {
    apt-get update --quiet >/dev/null
    install
}
