#!/bin/sh
# A Debian package of this machine's architecture and Python: make deb. Arguments as install.sh's;
# OUT=dir is where it goes (default: build). DEBFULLNAME and DEBEMAIL name its maintainer.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-$(dirname "$here")/build}
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$here/../edge/__init__.py")
architecture=$(dpkg --print-architecture)
maintainer="${DEBFULLNAME:-Omni Edge} <${DEBEMAIL:-omni-edge@users.noreply.github.com}>"
say() { echo "deb: $*"; }
command -v dpkg-shlibdeps >/dev/null || { say "sudo apt install dpkg-dev" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP
stage=$work/stage
DESTDIR=$stage sh "$here/install.sh"

# What lintian and readers of packages look for.
doc=$stage/usr/share/doc/omni-edge
mkdir -p "$stage/DEBIAN" "$doc" "$stage/usr/share/lintian/overrides"
cat >"$doc/copyright" <<'END'
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: omni-edge
Source: https://github.com/omni-edge/omni-edge

Files: *
Copyright: 2026 The authors of Omni Edge
License: Apache-2.0
Comment: The Python packages in /opt/edge/versions have licenses of their own, which lie in their
 folders *.dist-info.

License: Apache-2.0
 The license is in /usr/share/common-licenses/Apache-2.0.
END
gzip -9n >"$doc/changelog.gz" <<END
omni-edge ($version) stable; urgency=medium

  * See CHANGELOG.md of the source.

 -- $maintainer  $(date -R)
END
cp "$here/lintian-overrides" "$stage/usr/share/lintian/overrides/omni-edge"

# The system's libraries that the programs need, and from which version on.
say "looking for the libraries that it needs"
mkdir "$work/debian"
echo 'Source: omni-edge' >"$work/debian/control"
find "$stage/opt" -type f \( -name '*.so' -o -name '*.so.*' \) >"$work/libraries"
# shellcheck disable=SC2046  # no name has a space: pip made them
(cd "$work" && dpkg-shlibdeps -Tneeded --warnings=0 \
    $(xargs -n1 dirname <libraries | sort -u | sed 's/^/-l/') $(cat libraries))
libraries=$(sed -n 's/^shlibs:Depends=//p' "$work/needed")
python=$(readlink -f "$stage$(readlink "$stage/opt/edge/current")/bin/python")
cat >"$stage/DEBIAN/control" <<END
Package: omni-edge
Version: $version
Architecture: $architecture
Maintainer: $maintainer
Installed-Size: $(du -sk "$stage" | cut -f1)
Depends: $(basename "$python"), $libraries, procps, systemd
Recommends: python3-gi, gir1.2-gst-plugins-base-1.0
Section: misc
Priority: optional
Homepage: https://github.com/omni-edge/omni-edge
Description: robot's service that keeps perceiving and answers
 Streams a camera and a microphone into one omni model and answers on a local
 socket. Nothing leaves the device.
END
echo /etc/edge/edge.toml >"$stage/DEBIAN/conffiles"
cat >"$stage/DEBIAN/postinst" <<'END'
#!/bin/sh
set -e
[ "$1" = configure ] || exit 0
systemd-sysusers edge.conf &&
    find /var/lib/edge -path /var/lib/edge/recorded -prune -o -exec chown -h root:edge {} + && chown -R edge:edge /var/cache/edge ||
    echo "omni-edge: the service has no user: systemd-sysusers edge.conf" >&2
for unit in edge.socket edge.service; do  # an owner who has disabled it keeps it disabled
    if deb-systemd-helper --quiet was-enabled $unit; then
        deb-systemd-helper enable $unit >/dev/null || true
    else
        deb-systemd-helper update-state $unit >/dev/null || true
    fi
done
# What the service cannot do must not stop dpkg, and with it all other packages of the robot.
[ -d /run/systemd/system ] || exit 0
rm -rf /run/systemd/system/edge.service.d /run/systemd/system.control/edge.service.d
systemctl daemon-reload || true
udevadm control --reload && udevadm trigger || true
[ ! -e /var/lib/edge/bundle/manifest.json ] || deb-systemd-invoke restart edge.service ||
    echo "omni-edge: the service did not become ready: journalctl -u edge" >&2
END
cat >"$stage/DEBIAN/prerm" <<'END'
#!/bin/sh
set -e
[ "$1" = remove ] && [ -d /run/systemd/system ] || exit 0
systemctl stop 'edge-ingest@*' edge.socket edge.service || true
END
cat >"$stage/DEBIAN/postrm" <<'END'
#!/bin/sh
set -e
case $1 in
purge)
    ! command -v deb-systemd-helper >/dev/null ||
        deb-systemd-helper purge edge.socket edge.service >/dev/null
    rm -f /etc/systemd/system/*.wants/edge-ingest@*.service
    rm -rf /opt/edge /etc/edge /var/lib/edge /var/cache/edge /run/edge /run/edge-ingest
    for user in edge-ingest edge; do
        userdel $user 2>/dev/null || true
        groupdel $user 2>/dev/null || true
    done
    ;;
remove) rm -rf /run/edge /run/edge-ingest \
    /run/systemd/system/edge.service.d /run/systemd/system.control/edge.service.d ;;
esac
[ ! -d /run/systemd/system ] || systemctl daemon-reload || true
END
chmod 755 "$stage/DEBIAN/postinst" "$stage/DEBIAN/prerm" "$stage/DEBIAN/postrm"
(cd "$stage" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | xargs -0 md5sum >DEBIAN/md5sums)
say "packing $(du -sh "$stage" | cut -f1)"
mkdir -p "$out"
# zstd: dpkg 1.21.18 or later, and Ubuntu's since 18.04. Level 10 takes seconds; 19 takes minutes for
# one percent.
dpkg-deb --root-owner-group -Zzstd -z10 --build "$stage" \
    "$out/omni-edge_${version}_$architecture.deb"
