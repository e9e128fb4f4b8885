#!/bin/sh
# in_arm64.sh [SUITES]: `make test-release`. Installs the release in dist/ into arm64 file systems of
# Debian and Ubuntu under qemu, which have Python and systemd's tools, no compiler, no pip and no
# network; asks it a question on its NEON kernels; upgrades, refuses, goes back and removes it, and
# prints a table. A suite whose packages are not to be had here is left out, and told. Needs root and,
# on Debian: qemu-user-static binfmt-support. Packages are kept in build/arm64.
set -eu
repository=$(cd "$(dirname "$0")/../.." && pwd)
work=${WORK:-$repository/build/arm64}
python=${PYTHON:-python3}
release=$(echo "$repository"/dist/omni-edge-*-aarch64.tar)
[ $# -gt 0 ] || set -- jammy bookworm noble trixie
say() { echo "test-release: $*"; }

[ "$(id -u)" = 0 ] || { say "needs root" >&2; exit 1; }
[ -e "$release" ] || { say "needs a release: make wheels" >&2; exit 1; }
command -v qemu-aarch64-static >/dev/null || { say "needs qemu: see the head of $0" >&2; exit 1; }
mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
update-binfmts --enable qemu-aarch64
mkdir -p "$work"
[ -e "$work/bundle/manifest.json" ] ||
    "$python" -m build_engine.cli bundle "$repository/tests/assets/tiny_omni" "$work/bundle" \
        --target cpu >/dev/null

# The files of its packages as they are: what their scripts would set up is done here in a moment,
# and takes an emulator half an hour.
file_system() {  # SUITE
    root=$work/$1/root
    [ ! -e "$work/$1/ready" ] || return 0
    sh "$repository/scripts/arm64_packages.sh" "$1" "$work/$1" bash dash coreutils sed grep mawk \
        findutils tar util-linux base-passwd base-files libc-bin libstdc++6 procps python3 \
        systemd passwd || return 1
    for folder in bin sbin lib; do
        [ -L "$root/$folder" ] || [ ! -d "$root/$folder" ] ||
            { cp -a "$root/$folder/." "$root/usr/$folder" && rm -r "${root:?}/$folder"; }
        ln -sfn usr/$folder "$root/$folder"
    done
    [ -e "$root/usr/bin/sh" ] || ln -s dash "$root/usr/bin/sh"
    ln -sf mawk "$root/usr/bin/awk"
    for file in passwd group; do cp "$root/usr/share/base-passwd/$file.master" "$root/etc/$file"; done
    touch "$work/$1/ready"
}

# One with a file that is not what the checksums say; one whose self-check fails, checksums and all.
broken_releases() {
    "$python" - "$release" "$work" <<'END'
import hashlib, io, sys, tarfile, zipfile
from pathlib import Path

OLD, NEW = b"MAX_DISTANCE = 0.2", b"MAX_DISTANCE = -1.0"
release, work = Path(sys.argv[1]), Path(sys.argv[2])
with tarfile.open(release) as tar:
    files = {member.name: tar.extractfile(member).read() for member in tar if member.isreg()}
top = next(iter(files)).partition("/")[0]

def write(name, files):
    with tarfile.open(work / name, "w") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

write("tampered.tar", files | {f"{top}/jetson/edge.service": files[f"{top}/jetson/edge.service"] + b"#"})
(wheel,) = (name for name in files if "/omni_edge-" in name)
made = io.BytesIO()
with zipfile.ZipFile(io.BytesIO(files[wheel])) as old, zipfile.ZipFile(made, "w", 8) as new:
    for name in old.namelist():
        data = old.read(name)
        if name.endswith("RECORD"):
            lines = [line for line in data.decode().splitlines() if "self_check.py" not in line]
            data = "\n".join([*lines, "edge/engines/self_check.py,,", ""]).encode()
        if name == "edge/engines/self_check.py":
            assert OLD in data
            data = data.replace(OLD, NEW)
        new.writestr(name, data)
files[wheel] = made.getvalue()
files.pop(f"{top}/SHA256SUMS.minisig", None)
sums = {name.partition("/")[2]: data for name, data in files.items() if "SHA256SUMS" not in name}
lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sums.items()]
write("broken.tar", {f"{top}/SHA256SUMS": "".join(lines).encode()} | {f"{top}/{n}": d for n, d in sums.items()})
END
}
inside() { unshare --net --mount chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/root LANG=C.UTF-8 OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 "$@"; }
listing() { (cd "$root" && find etc usr opt var -xdev ! -path 'var/cache/*' ! -path '*/__pycache__*' \
    ! -path 'var/log/*' ! -path 'etc/*-' | sort); }
row() { printf '%-9s %-44s %5s s  %s\n' "$suite" "$1" "$2" "$3" | tee -a "$work/table"; }
expect() {  # WHAT CONDITION
    start=$(date +%s)
    if eval "$2" >"$work/log" 2>&1; then
        row "$1" $(($(date +%s) - start)) ok
    else
        row "$1" $(($(date +%s) - start)) FAILED
        tail -20 "$work/log" >&2
        exit 1
    fi
}
answers() {
    cat >"$root/media/ask.sh" <<'END'
edge run /var/lib/edge/bundle --socket /tmp/edge.sock 2>/tmp/log &
service=$!
until [ -S /tmp/edge.sock ]; do kill -0 $service || { cat /tmp/log; exit 1; }; sleep 0.2; done
edge ask "What do you see?" --max-tokens 3 --json --socket /tmp/edge.sock >/tmp/answer
kill $service; wait $service
END
    inside bash /media/ask.sh && grep -q completion_tokens "$root/tmp/answer"
}
current() { readlink "$root/opt/edge/current"; }

check() {
    # ONNX Runtime aborts without /sys.
    for fs in proc dev sys; do mountpoint -q "$root/$fs" || mount --bind /$fs "$root/$fs"; done
    trap 'umount "$root/proc" "$root/dev" "$root/sys" 2>/dev/null || true' EXIT
    trap 'exit 1' INT TERM HUP
    rm -rf "$root/media" "$root/opt" && mkdir -p "$root/media" "$root/opt"
    cp "$release" "$root/media/release.tar"
    cp "$work/tampered.tar" "$work/broken.tar" "$root/media"
    cp -r "$work/bundle" "$root/media/bundle"
    tar x -C "$root/media" -f "$release"
    here=/media/$(basename "$release" .tar)
    expect "no compiler, no pip, no network" '! inside sh -c "command -v gcc cc pip3" &&
        ! inside python3 -m ensurepip --version && [ "$(inside cat /proc/net/dev | grep -c :)" = 1 ]'
    inside sh "$here/jetson/uninstall.sh" >/dev/null  # of a run that was cut off
    mkdir -p "$root/opt"
    listing >"$work/before"
    expect "sh install.sh" 'inside BUNDLE=/media/bundle sh $here/install.sh'
    first=$(current)
    expect "user edge is in its groups" 'inside id -nG edge | grep -qw video'
    expect "units are enabled" 'inside systemctl --root=/ is-enabled edge.service edge.socket'
    expect "an answer on NEON" answers
    expect "a changed file is refused" '! inside edge update /media/tampered.tar && [ "$(current)" = "$first" ]'
    expect "edge update" 'inside edge update file:///media/release.tar && [ "$(current)" != "$first" ]'
    second=$(current)
    expect "a version that fails its self-check is refused" \
        '! inside edge update /media/broken.tar && [ "$(current)" = "$second" ] && inside edge --version'
    expect "edge update --back" 'inside edge update --back && [ "$(current)" = "$first" ] && inside edge --version'
    expect "removed: nothing is left" 'inside sh $here/jetson/uninstall.sh && mkdir -p "$root/opt" &&
        listing >"$work/after" && diff "$work/before" "$work/after" && ! inside id edge'
}

: >"$work/table"
broken_releases
for suite in "$@"; do
    if ! file_system "$suite" >"$work/log" 2>&1; then
        row "its packages are not to be had here" 0 "left out"
        continue
    fi
    (check)
done
say "the table:"
cat "$work/table"
