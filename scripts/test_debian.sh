#!/bin/sh
# test_debian.sh RELEASE [pytest's arguments]: `make test-debian`. Runs the tests that need no other
# machine in another release of Debian or Ubuntu, with the Python that it has, from locks/. Needs
# root; its file system with all that it installs stays in .cache/debian-RELEASE (5 GB; the first
# time takes some minutes more).
set -eu
cd "$(dirname "$0")/.."
release=$1
shift
git rev-parse --is-inside-work-tree >/dev/null 2>&1 ||
    { echo "test-debian: takes the files that git knows: use a clone" >&2; exit 1; }
if [ $# = 0 ]; then set -- tests/unit tests/session tests/serve; fi
cache=$PWD/.cache/debian-$release
root=$cache/tests
started=$(date +%s)
say() { echo "test-debian: $*, after $(($(date +%s) - started)) s"; }
if [ "$(id -u)" != 0 ]; then
    echo "test-debian: another release's file system needs root: sudo make test-debian" >&2
    exit 1
fi

# What it mounts and what the tests leave running end with it. Of the environment it gets how this
# machine reaches a package index.
inside() {
    # shellcheck disable=SC2016  # for the inner shell
    unshare --mount --pid --fork --kill-child sh -euc '
        root=$1
        shift
        mount -t proc proc "$root/proc"
        for system in dev sys; do mount --rbind /$system "$root/$system"; done
        for name in $(env | sed -n "s/^\([A-Za-z_][A-Za-z_0-9]*\)=.*/\1/p"); do
            case $name in PIP_* | *_proxy | *_PROXY | CI) ;; *) unset "$name" ;; esac
        done
        export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
            DEBIAN_FRONTEND=noninteractive OPENBLAS_NUM_THREADS=1
        exec chroot "$root" "$@"' - "$root" "$@"
}

if [ ! -e "$root/ready" ]; then
    rm -rf --one-file-system "$root"
    sh tests/install/make_root.sh "$release" "$cache" "$root"
fi
cp --dereference --remove-destination /etc/resolv.conf "$root/etc/resolv.conf"
if [ ! -e "$root/ready" ]; then
    inside sh -euc 'apt-get -qq update
        apt-get -qq install --no-install-recommends \
            make g++ git curl procps ca-certificates python3-dev python3-venv
        touch /ready' >/dev/null
fi
for file in /etc/ssl/certs/ca-certificates.crt /etc/pip.conf "$HOME/.config/pip/pip.conf"; do
    there=$root$(echo "$file" | sed "s#^$HOME/#/root/#")
    if [ -e "$file" ]; then mkdir -p "${there%/*}" && cp "$file" "$there"; fi
done

# The files as they are here, with the environment that is there from the last time.
mkdir -p "$root/src"
find "$root/src" -mindepth 1 -maxdepth 1 ! -name .venv ! -name .cache -exec rm -rf {} +
git ls-files -z --cached --others --exclude-standard |
    tar c --null --files-from=- | tar x --no-same-owner -C "$root/src"
say "$(inside python3 --version) of $release is there"
inside sh -euc 'cd /src; make .venv/.dev; sh scripts/install_js_clients.sh .venv/js'
say "the environment of locks/ is there"
status=0
inside sh -c 'cd /src && exec .venv/bin/python -m pytest "$@"' - "$@" || status=$?
say "ended with $status"
exit $status
