#!/bin/sh
# Removes Omni Edge from this machine: make uninstall. KEEP_DATA=1 leaves the configuration and the
# bundle.
set -eu
[ "$(id -u)" = 0 ] || { echo "uninstall: needs root: sudo make uninstall" >&2; exit 1; }
if [ -d /run/systemd/system ]; then
    systemctl disable --quiet --now edge.socket edge.service 2>/dev/null || true
    systemctl disable --quiet --now 'edge-ingest@*.service' 2>/dev/null || true
else
    systemctl --root=/ disable --quiet edge.socket edge.service 2>/dev/null || true
fi
rm -rf /opt/edge /run/edge /run/edge-ingest /var/cache/edge
rm -f /usr/bin/edge /usr/lib/systemd/system/edge.service /usr/lib/systemd/system/edge.socket \
    /usr/lib/systemd/system/edge-ingest@.service \
    /usr/lib/udev/rules.d/70-edge.rules /usr/lib/sysusers.d/edge.conf
rm -f /etc/systemd/system/multi-user.target.wants/edge-ingest@*.service
[ ! -d /run/systemd/system ] || systemctl daemon-reload
if [ "${KEEP_DATA:-}" = 1 ]; then
    echo "uninstall: /etc/edge and /var/lib/edge are kept"
    exit 0
fi
rm -rf /etc/edge /var/lib/edge
userdel edge 2>/dev/null || true
groupdel edge 2>/dev/null || true
echo "uninstall: nothing is left"
