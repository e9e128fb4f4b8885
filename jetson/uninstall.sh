#!/bin/sh
# Removes Omni Edge from this machine: make uninstall. KEEP_DATA=1 leaves the configuration and the
# bundle; DESTDIR=dir removes what was staged there, and nothing of this machine.
set -eu
root=${DESTDIR:-}
[ -z "$root" ] || { root=$(realpath "$root"); root=${root%/}; }
[ -n "$root" ] || [ "$(id -u)" = 0 ] ||
    { echo "uninstall: needs root: sudo make uninstall" >&2; exit 1; }
is_running() { [ -z "$root" ] && [ -d /run/systemd/system ]; }
if is_running; then
    systemctl disable --quiet --now edge.socket edge.service 2>/dev/null || true
    systemctl stop 'edge-ingest@*'
fi
if [ "${KEEP_DATA:-}" = 1 ] && used=$(readlink -f "$root/var/lib/edge/bundle") && [ -d "$used" ]; then
    ln -sfn "${used#"$root"}" "$root/var/lib/edge/bundle"  # it led through the program's folder
fi
rm -rf "$root/opt/edge" "$root/var/cache/edge"
[ -n "$root" ] || rm -rf /run/edge /run/edge-ingest
for unit in edge.service edge.socket edge-ingest@.service; do
    rm -f "$root/usr/lib/systemd/system/$unit"
done
for enabled in edge.service edge.socket 'edge-ingest@*.service'; do
    # shellcheck disable=SC2086  # a pattern
    rm -f "$root"/etc/systemd/system/*.wants/$enabled
done
rm -f "$root/usr/bin/edge" "$root/usr/lib/udev/rules.d/70-edge.rules" \
    "$root/usr/lib/sysusers.d/edge.conf"
! is_running || {
    rm -rf /run/systemd/system/edge.service* /run/systemd/system/edge.socket \
        /run/systemd/system.control/edge.service.d
    systemctl daemon-reload
}
if [ "${KEEP_DATA:-}" = 1 ]; then
    echo "uninstall: $root/etc/edge and $root/var/lib/edge are kept"
    exit 0
fi
rm -rf "$root/etc/edge" "$root/var/lib/edge"
if [ -n "$root" ]; then
    echo "uninstall: nothing is left in $root"
    exit 0
fi
for user in edge-ingest edge; do
    userdel $user 2>/dev/null || true
    groupdel $user 2>/dev/null || true
done
echo "uninstall: nothing is left"
