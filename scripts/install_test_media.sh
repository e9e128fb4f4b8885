#!/bin/sh
# Recorded speech for the tests: Debian's alsa-utils ships some. Without root or apt the tests
# that need it are skipped, with this reason (and fail where CI=true).
set -eu
speech=/usr/share/sounds/alsa/Front_Center.wav
if [ -e "$speech" ]; then exit 0; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "no $speech: install alsa-utils to run the tests on recorded speech" >&2
    exit 0
fi
apt-get install --quiet --yes --no-install-recommends alsa-utils >/dev/null 2>&1 || {
    apt-get update --quiet >/dev/null
    apt-get install --quiet --yes --no-install-recommends alsa-utils >/dev/null
}
