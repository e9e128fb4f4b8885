#!/bin/sh
# Installs Omni Edge on this machine, or upgrades it: make install.
#
#   BUNDLE=dir    copied into /var/lib/edge/bundles; else the one that is used already stays
#   EXTRAS=a,b    of pyproject.toml (default: what this machine can use)
#   RELEASE=tar   of make wheels: check it, and install it with what is in it
#   WHEELS=dir    take all Python packages from there, as they are: no network, no compiler
#   BACK=dir      of an earlier version that is still there: take that one
#   DESTDIR=dir   stage into a file system that is not running: no users, no services
#   PYTHON=...    the interpreter of the service (default: the system's)
#
# Python packages have the versions in locks/ and, fetched, its hashes. Those of WHEELS are taken on
# trust: what is compiled there has no hash that could be known here. Those of a release were checked.
#
# Each version has a folder of its own under /opt/edge/versions, with a link to its bundle; `current`
# points to one. It is moved when the new version is ready with its bundle: until then all that would
# start it is in /run. So whatever ends this script, a machine that is switched on has the version
# before or this one, and a version that does not become ready gives way to the one before.
set -eu
umask 022  # the service's user reads what root installs
here=$(cd "$(dirname "$0")" && pwd)
source=${SOURCE:-$(dirname "$here")}
[ -z "${RELEASE:-}" ] || exec sh "$here/install_release.sh"
root=${DESTDIR:-}
unset DESTDIR  # cmake, which compiles the kernels, would install them there
[ -z "$root" ] || { mkdir -p "$root"; root=$(realpath "$root"); root=${root%/}; }
# The system's own, by its full name: the service sees no home directories, where version managers
# keep theirs, and python3 may be another version one day.
python=$(command -v "${PYTHON:-/usr/bin/python3}") && python=$(readlink -f "$python") ||
    { echo "install: there is no ${PYTHON:-/usr/bin/python3}" >&2; exit 1; }
versions=/opt/edge/versions
bundle=/var/lib/edge/bundle
bundles=/var/lib/edge/bundles

say() { echo "install: $*"; }
die() { echo "install: $*" >&2; exit 1; }
is_running() { [ -z "$root" ] && [ -d /run/systemd/system ]; }

# 1. What is here.
[ -n "$root" ] || [ "$(id -u)" = 0 ] || die "needs root: sudo make install"
mkdir -p "$root$versions" "$root$bundles"
name=
needed_kb=0
if [ -n "${BUNDLE:-}" ]; then
    # The manifest has the hashes of all files: another bundle, or signature, has another name.
    name=$("$python" -c 'import hashlib, json, os, re, sys
text = open(sys.argv[1], "rb").read()
name = re.sub(r"[^\w.-]", "_", str(json.loads(text)["name"]))
signature = sys.argv[1] + ".minisig"
text += open(signature, "rb").read() if os.path.exists(signature) else b""
print(name + "-" + hashlib.sha256(text).hexdigest()[:12])' "$BUNDLE/manifest.json" 2>/dev/null) ||
        die "$BUNDLE is no bundle: build-engine bundle makes one"
    [ -e "$root$bundles/$name" ] || needed_kb=$(du -skL "$BUNDLE" | cut -f1)
fi
room_for() {  # FOLDER KB
    free_kb=$(df -Pk "$1" | awk 'NR == 2 { print $4 }')
    [ "$free_kb" -ge "$2" ] || die "$1 has $((free_kb / 1024)) MB free, $(($2 / 1024)) are needed: make room"
}
version_kb=2000000  # what is fetched and compiled, too
[ -z "${WHEELS:-}${BACK:-}" ] || version_kb=1000000
if [ "$(stat -c %d "$root$versions")" = "$(stat -c %d "$root$bundles")" ]; then
    room_for "$root$versions" $((version_kb + needed_kb))
else
    room_for "$root$versions" $version_kb
    room_for "$root$bundles" "$needed_kb"
fi
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
    sound=/usr/include/portaudio.h
    [ -z "${WHEELS:-}" ] || sound=$(echo "$WHEELS"/[Pp]y[Aa]udio-*-"$("$python" -c 'import sys
print("cp%d%d" % sys.version_info[:2])')"-*)
    [ ! -e "$sound" ] || extras=$extras,microphone
fi
link=$root/opt/edge/current
old=$(readlink "$link" 2>/dev/null || true)
work=$(mktemp -d)
keep=${BACK:-}
is_candidate=
clean_up() {
    if [ -n "$is_candidate" ]; then  # ended while it was tried
        end_candidate
        systemctl --no-block restart edge.service
    fi
    rm -rf "$work" "$root$bundles"/*.new
    [ -n "$keep" ] || rm -rf "$root${new:?}"
}
trap clean_up EXIT
trap 'exit 1' INT TERM HUP
build() {
    say "building $new with $extras"
    # What compiles has an environment of its own, which goes again. Its pip installs for the service's,
    # too, which needs none. A release brings its own pip.
    pip=$(echo "${WHEELS:-}"/pip-*.whl)
    if [ ! -e "$pip" ]; then
        "$python" -m venv "$work/tools" ||
            die "cannot make a virtual environment: sudo apt install python3-venv"
        pip=$(echo "$work"/tools/lib/python3*/site-packages)
    fi
    pip_with() {  # PYTHON ARGUMENTS
        with=$1
        shift
        "$with" "$pip/pip" --quiet --disable-pip-version-check "$@"
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
}
if [ -n "${BACK:-}" ]; then
    new=$BACK
else
    version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$source/edge/__init__.py")
    new=$versions/$version-$(date +%Y%m%d%H%M%S)
    build
fi

# 3. Its bundle, beside the others. Nobody uses it before it was read from end to end.
owned() { [ -n "$root" ] || chown -R root:edge "$1"; chmod -R u=rwX,g=rX,o= "$1"; }
install -Dm644 "$here/sysusers.conf" "$root/usr/lib/sysusers.d/edge.conf"
[ -n "$root" ] || systemd-sysusers edge.conf
install -d -m750 "$root/var/lib/edge" "$root$bundles"
if [ -z "$root" ] && [ -d $bundle ] && [ ! -L $bundle ]; then
    # Put there by hand. It is given a name of its own and its place to a link, in one step.
    mv -T $bundles/found $bundles/found.old 2>/dev/null || true
    cp -al $bundle $bundles/found.new && mv -T $bundles/found.new $bundles/found
    owned $bundles/found
    [ -z "$old" ] || ln -sfn $bundles/found "$old/bundle"
    ln -sfn $bundles/found $bundles/link.new
    "$python" -c 'import ctypes, sys
HERE, EXCHANGE = -100, 2
a, b = (word.encode() for word in sys.argv[1:])
sys.exit(ctypes.CDLL(None).renameat2(HERE, a, HERE, b, EXCHANGE) != 0)' $bundle $bundles/link.new ||
        die "$bundle: cannot be moved to $bundles"
    rm -rf $bundles/link.new $bundles/found.old
fi
settings=  # they may ask for a signature
[ ! -e /etc/edge/edge.toml ] || settings="--config /etc/edge/edge.toml"
if [ -n "$name" ]; then
    chosen=$bundles/$name
    if [ -e "$root$chosen" ] && [ -z "$root" ] && ! "$new/bin/edge" doctor "$chosen" $settings >/dev/null 2>&1; then
        damaged=$chosen
    fi
    if [ ! -e "$root$chosen" ] || [ -n "${damaged:-}" ]; then
        say "copying the bundle to $root$chosen"
        cp -rL --reflink=auto "$BUNDLE" "$root$chosen.new"
        owned "$root$chosen.new"
        if [ -z "$root" ]; then
            "$new/bin/edge" doctor "$chosen.new" $settings >"$work/doctor" 2>&1 || {
                grep -A1 '^failure' "$work/doctor" || cat "$work/doctor"
                die "$BUNDLE cannot be used: see above; ${old:-nothing} stays as it is"
            } >&2
        fi
        sync -f "$root$bundles"
        [ -z "${damaged:-}" ] || rm -rf "${root:?}$damaged"
        mv -T "$root$chosen.new" "$root$chosen"
    fi
else
    used=$root$bundle
    [ -z "${BACK:-}" ] || used=$new/bundle
    chosen=$(readlink -f "$used" || true)
    [ -e "$chosen/manifest.json" ] || chosen=
fi
[ -z "$chosen" ] || ln -sfn "$chosen" "$root$new/bundle"

# 4. What surrounds it. A configuration that is there stays as it is.
mkdir -p "$root/etc/edge/ingest" "$root/usr/bin"
chmod 700 "$root/etc/edge/ingest"  # addresses with passwords
units=$root/usr/lib/systemd/system
replace() { install -Dm644 "$1" "$2.new" && mv -T "$2.new" "$2"; }
[ -e "$root/etc/edge/edge.toml" ] || replace "$here/edge.toml" "$root/etc/edge/edge.toml"
install -d -m750 "$root/var/cache/edge"
[ -n "$root" ] || { chown root:edge /var/lib/edge $bundles; chown -R edge:edge /var/cache/edge; }
link_to() { ln -sfn "$1" "$2.new" && mv -T "$2.new" "$2"; }
take() {  # for good
    for unit in edge.service edge.socket edge-ingest@.service; do replace "$here/$unit" "$units/$unit"; done
    replace "$here/70-edge.rules" "$root/usr/lib/udev/rules.d/70-edge.rules"
    sync -f "$root$new"
    keep=1
    # What leads through `current` leads nowhere at first: with that link all of it is there at once.
    link_to /opt/edge/current/bin/edge "$root/usr/bin/edge"
    [ -e "$root$bundle" ] || link_to /opt/edge/current/bundle "$root$bundle"
    link_to "$new" "$link"
    link_to /opt/edge/current/bundle "$root$bundle"
}
if [ -n "$root" ]; then
    take
    say "staged in $root"
    exit 0
fi

# 5. The new version must prove itself.
ready="installed; it starts with the machine"
candidates=/run/systemd/system
candidate() {  # units that start the new version, until the machine is switched off
    is_candidate=1
    mkdir -p $candidates
    cmp -s "$here/edge.socket" /usr/lib/systemd/system/edge.socket ||
        systemctl stop edge.service edge.socket 2>/dev/null || true
    cp "$here/edge.socket" $candidates
    # Where it does not become ready, and nobody is there any more to see it, the one before starts.
    back="rm -f $candidates/edge.service $candidates/edge.socket; systemctl daemon-reload"
    [ -z "$old" ] || back="$back; systemctl --no-block restart edge.service"
    sed -e "s#/opt/edge/current/#$new/#g; s#$bundle #$new/bundle #; s#^Restart=.*#Restart=no#" \
        -e "s#^ExecStopPost=.*#ExecStopPost=+/bin/sh -c '[ \"\$SERVICE_RESULT\" = success ] || { $back; }'#" \
        "$here/edge.service" >$candidates/edge.service.new
    mv $candidates/edge.service.new $candidates/edge.service
    # What jetson.before_start has found goes with the units that it was found for.
    rm -rf $candidates/edge.service.d /run/systemd/system.control/edge.service.d
    systemctl daemon-reload
}
end_candidate() {
    is_candidate=
    rm -f $candidates/edge.service $candidates/edge.socket
    systemctl daemon-reload
}
if [ -z "$chosen" ]; then
    take
    ! is_running || systemctl daemon-reload
    ready="installed; it needs a bundle: sudo make install BUNDLE=..."
elif is_running; then
    candidate
    systemctl reset-failed edge.service edge.socket 2>/dev/null || true
    # Where it gave way already, it is the one before that has become ready.
    if systemctl restart edge.service && [ -e $candidates/edge.service ]; then
        take
        end_candidate
        udevadm control --reload && udevadm trigger || true
        systemctl enable --quiet edge.socket edge.service
        systemctl try-restart 'edge-ingest@*'
        ready="ready: edge ask \"What do you see?\""
    elif [ -n "$old" ]; then
        end_candidate
        systemctl start edge.service && goes_on="$old goes on" ||
            goes_on="$old did not become ready either"
        die "$new did not become ready (journalctl -u edge); $goes_on"
    else
        take
        end_candidate
        systemctl enable --quiet edge.socket edge.service
        die "$new did not become ready: journalctl -u edge, then edge doctor"
    fi
elif "$new/bin/edge" doctor "$chosen" $settings --try; then
    take
elif [ -n "$old" ]; then
    die "$new did not pass its self-check; $old stays"
else
    die "$new did not pass its self-check: see above"
fi
is_running || systemctl --root=/ enable --quiet edge.socket edge.service
remove() { say "removing $1: $2"; rm -rf "$1"; }
for unused in "$versions"/*; do  # the one before stays, with its bundle, to go back to
    [ "$unused" = "$new" ] || [ "$unused" = "$old" ] || remove "$unused" "it is older than the one before"
done
for unused in $bundles/*; do
    is_used=
    for user in "$versions"/*/bundle; do [ "$(readlink "$user")" != "$unused" ] || is_used=1; done
    [ -n "$is_used" ] || [ ! -e "$unused" ] || remove "$unused" "no version here uses it"
done
[ ! -e "$old" ] || say "kept to go back to: $old"
say "$ready"
