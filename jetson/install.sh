#!/bin/sh
# Installs Omni Edge on this machine, or upgrades it: make install.
#
#   BUNDLE=dir    copied to /var/lib/edge/bundle; else put one there before the service can start
#   EXTRAS=a,b    of pyproject.toml (default: what this machine can use)
#   WHEELS=dir    take all Python packages from there, as they are: no network
#   DESTDIR=dir   stage into a file system that is not running: no users, no services
#   PYTHON=...    the interpreter of the service (default: the system's)
#
# Python packages have the versions in locks/ and, fetched, its hashes. Those of WHEELS are taken on
# trust: what is compiled there has no hash that could be known here.
#
# Each version has a folder of its own under /opt/edge/versions; `current` points to one. A version
# that does not become ready is removed and the one before goes on.
set -eu
umask 022  # the service's user reads what root installs
here=$(cd "$(dirname "$0")" && pwd)
source=${SOURCE:-$(dirname "$here")}
root=${DESTDIR:-}
unset DESTDIR  # cmake, which compiles the kernels, would install them there
[ -z "$root" ] || { mkdir -p "$root"; root=$(realpath "$root"); root=${root%/}; }
# The system's own, by its full name: the service sees no home directories, where version managers
# keep theirs, and python3 may be another version one day.
python=$(command -v "${PYTHON:-/usr/bin/python3}") && python=$(readlink -f "$python") ||
    { echo "install: there is no ${PYTHON:-/usr/bin/python3}" >&2; exit 1; }
versions=/opt/edge/versions
bundle=/var/lib/edge/bundle

say() { echo "install: $*"; }
die() { echo "install: $*" >&2; exit 1; }
is_running() { [ -z "$root" ] && [ -d /run/systemd/system ]; }

# 1. What is here.
[ -n "$root" ] || [ "$(id -u)" = 0 ] || die "needs root: sudo make install"
free_kb=$(df -Pk "${root:-/}" | awk 'NR == 2 { print $4 }')
[ "$free_kb" -ge 2000000 ] || die "only $((free_kb / 1024)) MB are free, 2 GB are needed: make room"
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' ||
    die "$python is not one of 3.10 to 3.14: flash JetPack 7.2 (Orin) or 7.0 or later (Thor), or PYTHON=python3.10"
if [ -z "$root" ]; then
    model=$(tr -d '\0' 2>/dev/null </proc/device-tree/model || echo "no Jetson")
    say "machine: $model, $(awk '/MemTotal/ { printf "%.0f GB", $2 / 1e6 }' /proc/meminfo)"
    say "L4T: $(sed -n -e 's/^# \(R3[0-7]\).*REVISION: \([0-9.]*\).*/\1.\2: only the cpu engine; the GPU needs JetPack 7.2/p;t' \
        -e 's/^# \(R[0-9]*\).*REVISION: \([0-9.]*\).*/\1.\2/p' /etc/nv_tegra_release \
        2>/dev/null || echo "none: only the cpu engine")"
    ldconfig -p | grep -q 'libcuda\.so' && cuda=found || cuda="not found: only the cpu engine"
    say "CUDA driver: $cuda"
    say "TensorRT: $("$python" -c 'import tensorrt; print(tensorrt.__version__)' 2>/dev/null ||
        echo "not found: only the cpu engine")"
    say "power mode: $(nvpmodel -q 2>/dev/null | sed -n 's/^NV Power Mode: //p' | grep . ||
        echo unknown)"
fi

# 2. The new version, in a folder that nobody uses yet.
if [ -n "${EXTRAS:-}" ]; then extras=$EXTRAS; else
    extras=runtime,top
    [ ! -e /dev/nvmap ] || extras=$extras,device
    [ ! -e /usr/include/portaudio.h ] || extras=$extras,microphone
fi
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$source/edge/__init__.py")
new=$versions/$version-$(date +%Y%m%d%H%M%S)
link=$root/opt/edge/current
old=$(readlink "$link" 2>/dev/null || true)
work=$(mktemp -d)
keep=
clean_up() { rm -rf "$work"; [ -n "$keep" ] || rm -rf "$root${new:?}"; }
trap clean_up EXIT
trap 'exit 1' INT TERM HUP
say "building $new with $extras"
# What compiles has an environment of its own, which goes again. Its pip installs for the service's,
# too, which needs none.
"$python" -m venv "$work/tools" ||
    die "cannot make a virtual environment: sudo apt install python3-venv"
pip_with() {  # PYTHON ARGUMENTS
    with=$1
    shift
    "$with" "$work"/tools/lib/python3*/site-packages/pip --quiet --disable-pip-version-check "$@"
}
for extra in $(echo "$extras" | tr , ' '); do
    [ -e "$source/locks/$extra.txt" ] || die "there is no $source/locks/$extra.txt"
    cat "$source/locks/$extra.txt" >>"$work/lock.txt"
done
sed -n 's/^\([a-z].*\) \\$/\1/p' "$work/lock.txt" >"$work/versions.txt"
if [ -n "${WHEELS:-}" ]; then wheels=$WHEELS; else
    tools=$work/tools/bin/python
    wheels=$work/wheels
    say "1/4 fetching what compiles"
    pip_with "$tools" install --no-deps --require-hashes -r "$source/locks/tools.txt"
    PATH=$work/tools/bin:$PATH
    say "2/4 fetching packages (100 MB)"
    pip_with "$tools" download --dest "$work/fetched" --no-deps --no-build-isolation --require-hashes \
        -r "$work/lock.txt"
    say "3/4 compiling the kernels (1 to 5 minutes)"
    # No cache: it may hold what another Python of this machine has compiled.
    pip_with "$tools" wheel --wheel-dir "$wheels" --no-cache-dir --no-deps --no-build-isolation \
        "$work"/fetched/*
    pip_with "$tools" wheel --wheel-dir "$wheels" --no-deps --no-build-isolation "$source"
fi
say "4/4 installing packages into $root$new"
mkdir -p "$root$versions"
# JetPack's TensorRT and Debian's PyGObject are the system's; whatever else it has may change.
"$python" -m venv --without-pip --system-site-packages "$root$new"
pip_with "$root$new/bin/python" install --ignore-installed --no-compile --no-deps --no-index \
    --find-links "$wheels" -r "$work/versions.txt" "omni-edge==$version"
# Compiled now: the service may not write, and would compile at each start. Files that do not compile
# are for other versions of Python.
"$root$new/bin/python" -m compileall -qq -j 0 ${root:+-s "$root" -p /} "$root$new/lib" || true
if [ -n "$root" ]; then
    grep -rlI --null "$root" "$root$new/bin" "$root$new/pyvenv.cfg" | xargs -0r sed -i "s#$root##g"
fi

# 3. What surrounds it. A configuration that is there stays as it is.
mkdir -p "$root/etc/edge/ingest" "$root/usr/bin"
chmod 700 "$root/etc/edge/ingest"  # addresses with passwords
units=$root/usr/lib/systemd/system
install -Dm644 "$here/edge.service" "$units/edge.service"
install -Dm644 "$here/edge.socket" "$units/edge.socket"
install -Dm644 "$here/edge-ingest@.service" "$units/edge-ingest@.service"
install -Dm644 "$here/70-edge.rules" "$root/usr/lib/udev/rules.d/70-edge.rules"
install -Dm644 "$here/sysusers.conf" "$root/usr/lib/sysusers.d/edge.conf"
[ -e "$root/etc/edge/edge.toml" ] || install -m644 "$here/edge.toml" "$root/etc/edge/edge.toml"
install -d -m750 "$root/var/lib/edge" "$root/var/cache/edge"
ln -sfn /opt/edge/current/bin/edge "$root/usr/bin/edge"
if [ -n "${BUNDLE:-}" ]; then
    rm -rf "$root$bundle.new"
    cp -r "$BUNDLE" "$root$bundle.new"
    rm -rf "$root$bundle"
    mv "$root$bundle.new" "$root$bundle"
fi
point_to() { ln -sfn "$1" "$link.new" && mv -T "$link.new" "$link"; }

if [ -n "$root" ]; then
    point_to "$new"
    keep=1
    say "staged in $root"
    exit 0
fi
systemd-sysusers edge.conf
chown -R edge:edge /var/lib/edge /var/cache/edge
if is_running; then
    # what jetson.before_start has found goes with the units that it was found for
    rm -rf /run/systemd/system/edge.service.d /run/systemd/system.control/edge.service.d
    systemctl daemon-reload
    udevadm control --reload && udevadm trigger || true
fi

# 4. The new version must prove itself.
if [ ! -e $bundle/manifest.json ]; then
    point_to "$new"
    ready="installed; put a bundle into $bundle, then: systemctl start edge"
elif is_running; then
    point_to "$new"
    systemctl enable --quiet --now edge.socket
    if systemctl enable --quiet edge.service && systemctl restart edge.service; then
        ready="ready: edge ask \"What do you see?\""
    elif [ -n "$old" ]; then
        point_to "$old"
        systemctl restart edge.service || true
        die "$new did not become ready (journalctl -u edge); $old goes on"
    else
        keep=1
        die "$new did not become ready: journalctl -u edge, then edge doctor"
    fi
elif "$new/bin/edge" doctor $bundle --try; then
    point_to "$new"
    ready="installed; it starts with the machine"
elif [ -n "$old" ]; then
    die "$new did not pass its self-check; $old stays"
else
    die "$new did not pass its self-check: see above"
fi
is_running || systemctl --root=/ enable --quiet edge.socket edge.service
keep=1
for unused in "$versions"/*; do  # the one before stays, to go back to
    [ "$unused" = "$new" ] || [ "$unused" = "$old" ] || rm -rf "$unused"
done
say "$ready"
