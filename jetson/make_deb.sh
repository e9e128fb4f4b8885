#!/bin/sh
# A Debian package of this machine's architecture and Python: make deb. Arguments as install.sh's.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-$(dirname "$here")/build}
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$here/../edge/__init__.py")
python=$("${PYTHON:-python3}" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
architecture=$(dpkg --print-architecture)
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
chmod 755 "$stage"
DESTDIR=$stage sh "$here/install.sh"
mkdir "$stage/DEBIAN"
cat >"$stage/DEBIAN/control" <<END
Package: omni-edge
Version: $version
Architecture: $architecture
Maintainer: Omni Edge <omni-edge@localhost>
Depends: python$python, systemd
Recommends: libportaudio2, python3-gi, gir1.2-gst-plugins-base-1.0
Section: misc
Priority: optional
Description: a robot that keeps perceiving
 Streams a camera and a microphone into one omni model and answers on a local socket.
END
echo /etc/edge/edge.toml >"$stage/DEBIAN/conffiles"
cat >"$stage/DEBIAN/postinst" <<'END'
#!/bin/sh
set -e
systemd-sysusers edge.conf
chown -R edge:edge /var/lib/edge /var/cache/edge
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl enable --quiet edge.socket edge.service
    [ ! -e /var/lib/edge/bundle/manifest.json ] || systemctl restart edge.service
else
    systemctl --root=/ enable --quiet edge.socket edge.service
fi
END
cat >"$stage/DEBIAN/prerm" <<'END'
#!/bin/sh
set -e
if [ "$1" = remove ]; then
    now=; [ ! -d /run/systemd/system ] || now=--now
    systemctl ${now:---root=/} disable --quiet edge.socket edge.service || true
fi
END
cat >"$stage/DEBIAN/postrm" <<'END'
#!/bin/sh
set -e
if [ "$1" = purge ]; then
    rm -rf /opt/edge /var/lib/edge /var/cache/edge /etc/edge
    userdel edge 2>/dev/null || true
    groupdel edge 2>/dev/null || true
fi
END
chmod 755 "$stage/DEBIAN/postinst" "$stage/DEBIAN/prerm" "$stage/DEBIAN/postrm"
mkdir -p "$out"
dpkg-deb --root-owner-group --build "$stage" "$out/omni-edge_${version}_$architecture.deb"
