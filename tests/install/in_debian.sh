#!/bin/sh
# in_debian.sh BUILD_ENGINE: `make test-deb`. Builds the package from source and gives it to a clean
# file system of this machine's Debian or Ubuntu: it installs, answers a question about a recorded
# session, is reinstalled, upgraded, removed and purged. Needs root, and a network; the clean file
# system and what apt fetches for it are kept in .cache.
# shellcheck disable=SC2086  # several words
set -eu
build_engine=$1
repository=$(cd "$(dirname "$0")/../.." && pwd)
. /etc/os-release
cache=$repository/.cache/$ID-$VERSION_CODENAME
started=$(date +%s)
say() { echo "test-deb: $*"; }

if [ "$(id -u)" != 0 ]; then
    say "skipped: a clean file system needs root: sudo make test-deb" >&2
    [ "${CI:-}" != true ]
    exit
fi
missing=
for program in lintian dpkg-shlibdeps; do
    command -v $program >/dev/null || missing=1
done
[ -z "$missing" ] || { apt-get -qq update && apt-get -qq install lintian dpkg-dev; } >/dev/null

# 1. A clean file system, with nothing but what the package asks for.
work=$(mktemp -d)
root=$work/root
package=$work/package
unmount() { mountpoint -q "$1" && umount "$1" || true; }
clean_up() {
    [ -z "${service:-}" ] || kill "$service" 2>/dev/null || true
    for fs in proc dev var/cache/apt/archives; do unmount "$root/$fs"; done
    rm -rf --one-file-system "$work"
}
trap clean_up EXIT
trap 'exit 1' INT TERM HUP
mkdir -p "$package" "$cache/archives/partial"
sh "$repository/tests/install/make_root.sh" "$VERSION_CODENAME" "$cache" "$root"
for fs in proc dev; do mount --bind /$fs "$root/$fs"; done
mount --bind "$cache/archives" "$root/var/cache/apt/archives"
clean_environment="env -i HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive
    PATH=/usr/sbin:/usr/bin:/sbin:/bin OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1"
inside() { chroot "$root" $clean_environment "$@"; }
expect() { if ! eval "$2"; then say "FAILED: $1" >&2; exit 1; fi; say "ok: $1"; }
quietly() { "$@" >"$work/log" 2>&1 || { cat "$work/log" >&2; return 1; }; }

# 2. The package.
bundle=${BUNDLE:-}
if [ -z "$bundle" ]; then
    bundle=$work/bundle
    "$build_engine" bundle "$repository/tests/assets/tiny_omni" "$bundle" --target cpu >/dev/null
fi
(cd "$repository" && make --no-print-directory deb BUNDLE="$bundle" OUT="$package" WHEELS=)
deb=$(echo "$package"/*.deb)
say "$(basename "$deb"): $(du -h "$deb" | cut -f1), after $(($(date +%s) - started)) s"
dpkg-deb -c "$deb" >"$work/contents"
expect "the kernels are beside the program" \
    'grep -Eq "/site-packages/edge/_kernels\.[^/]*\.so$" "$work/contents"'
expect "nothing is in /tmp" '! grep -q " \./tmp/" "$work/contents"'
stage=$root/stage
dpkg-deb -x "$deb" "$stage"
expect "nothing names the folders it was built in" \
    '! grep -rqF -e "$repository" -e "${TMPDIR:-/tmp}/tmp." "$stage/opt" "$stage/etc" "$stage/usr"'
expect "no pip, no compiler's tools" \
    '! ls "$stage"/opt/edge/versions/*/lib/python3*/site-packages | grep -Exq "pip|setuptools|cmake|ninja|nanobind"'
expect "lintian finds no errors" 'quietly lintian --allow-root --fail-on error "$deb"'

# 3. Installed.
listing() { (cd "$root" && find etc usr opt var -xdev -mindepth 1 ! -path 'var/cache/apt/*' \
    ! -path 'var/log/*' ! -path 'etc/*-' ! -path 'var/lib/dpkg/*-old' | sort); }
quietly inside apt-get update
say "what it asks for: $(dpkg-deb -f "$deb" Depends)"
quietly inside apt-get satisfy -y --no-install-recommends "$(dpkg-deb -f "$deb" Depends)"
listing >"$work/before"
mkdir "$root/src"
cp "$deb" "$root/src/one.deb"
cp "$repository/jetson/uninstall.sh" "$repository/tests/assets/session/session.mp4" "$root/src"
quietly inside dpkg -i /src/one.deb
expect "user edge is in its groups" 'inside id -nG edge | grep -qw video'
expect "its units are enabled" \
    'inside systemctl --root=/ is-enabled edge.service edge.socket >/dev/null'
expect "its units are right for this systemd" \
    '! inside systemd-analyze verify edge.service edge.socket 2>&1 | grep .'
expect "edge doctor --try" 'inside edge doctor /var/lib/edge/bundle --try >"$work/doctor" ||
    { cat "$work/doctor"; false; }'
answers() {  # the unit's own command, as its user, with a film for a camera
    inside install -d -o edge -g edge /run/edge
    command=$(sed -n 's/^ExecStart=//p' "$root/usr/lib/systemd/system/edge.service")
    chroot "$root" $clean_environment setpriv --reuid edge --regid edge --init-groups \
        $command --video /src/session.mp4 >"$work/service" 2>&1 &
    service=$!
    answer=
    for _ in $(seq 100); do  # the square is there for some seconds of the film
        [ "$answer" != blue ] && kill -0 $service 2>/dev/null || break
        answer=$(inside edge ask "What color is the square?" 2>/dev/null) || sleep 0.2
    done
    kill $service && wait $service || { cat "$work/service"; return 1; }
    service=
    [ "$answer" = blue ] || { say "answered: $answer"; cat "$work/service"; return 1; }
}
expect "it sees and answers, as the user of the service" answers

# 4. A stage goes, the machine's own stays.
inside DESTDIR=/stage sh /src/uninstall.sh
expect "uninstall DESTDIR= leaves only the package's documents in the stage" \
    '! (cd "$stage" && find . ! -type d ! -path "./usr/share/doc/*" ! -path "./usr/share/lintian/*") |
        grep .'
expect "and this machine as it was" \
    'inside dpkg --verify omni-edge && inside id edge >/dev/null && inside edge --version >/dev/null'
rm -rf "$stage"

# 5. Again, newer, gone.
# A systemd that is there and starts nothing.
mkdir -p "$root/run/systemd/system" "$root/src/failing"
cat >"$root/src/failing/systemctl" <<'END'
#!/bin/sh
case " $* " in *" is-enabled "*) echo enabled ;; *) exit 1 ;; esac
END
chmod 755 "$root/src/failing/systemctl"
expect "it is reinstalled, and says so where the service does not become ready" \
    'quietly inside PATH=/src/failing:/usr/sbin:/usr/bin:/sbin:/bin dpkg -i /src/one.deb &&
     grep "journalctl -u edge" "$work/log" || { cat "$work/log"; false; }'
rmdir "$root/run/systemd/system"
dpkg-deb -R "$deb" "$work/newer"
first=$(readlink "$work/newer/opt/edge/current")
mv "$work/newer$first" "$work/newer$first-newer"
ln -sfn "$first-newer" "$work/newer/opt/edge/current"
sed -i 's/^Version: .*/&+newer/' "$work/newer/DEBIAN/control"
sed -i "s#${first#/}/#${first#/}-newer/#" "$work/newer/DEBIAN/md5sums"
grep -rlI "$first" "$work/newer$first-newer/bin" "$work/newer$first-newer/pyvenv.cfg" |
    xargs sed -i "s#$first#$first-newer#g"
dpkg-deb --root-owner-group -Zzstd -z1 --build "$work/newer" "$root/src/newer.deb" >/dev/null
rm -rf "$work/newer"
echo "# the owner's" >>"$root/etc/edge/edge.toml"
inside systemctl --root=/ disable --quiet edge.service
quietly inside dpkg -i /src/newer.deb
expect "it is upgraded, and nothing of the first is left" \
    '[ "$(readlink "$root/opt/edge/current")" = "$first-newer" ] && [ ! -e "$root$first" ]'
expect "the owner's settings stay" 'grep -q "the owner" "$root/etc/edge/edge.toml"'
expect "what the owner has disabled stays disabled" \
    '! inside systemctl --root=/ is-enabled edge.service >/dev/null'
expect "the newer one answers" answers
quietly inside dpkg -r omni-edge
expect "removed: the settings stay, the program goes" \
    '[ -e "$root/etc/edge/edge.toml" ] && [ ! -e "$root/opt/edge" ] && [ ! -e "$root/run/edge" ]'
quietly inside dpkg -P omni-edge
mkdir -p "$root/opt"  # which dpkg removes with the last that was in it
listing >"$work/after"
expect "purged: nothing is left" 'diff "$work/before" "$work/after"'
expect "no user is left" '! inside id edge 2>/dev/null'
say "all of it is right, in $(($(date +%s) - started)) s"
