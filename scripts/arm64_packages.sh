#!/bin/sh
# arm64_packages.sh SUITE FOLDER PACKAGES...: FOLDER/root gets the files of packages of an arm64 Debian
# or Ubuntu ("bookworm", "jammy") and of what they need. Nothing is installed on this system.
set -eu
suite=$1 folder=$(realpath -m "$2")
shift 2
case $suite in
    jammy | noble)
        keys=/usr/share/keyrings/ubuntu-archive-keyring.gpg
        mirror="http://ports.ubuntu.com/ubuntu-ports $suite main universe"
        ;;
    *)
        keys=/usr/share/keyrings/debian-archive-keyring.gpg
        mirror="http://deb.debian.org/debian $suite main"
        ;;
esac
[ -e "$keys" ] || { echo "no $keys: apt-get install ubuntu-keyring" >&2; exit 1; }
apt=$folder/apt
mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$folder/root"
echo "deb [signed-by=$keys] $mirror" >"$apt/sources.list"
: >"$apt/status"
arm64_apt() {
    apt-get --quiet --quiet \
        -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root \
        -o Dir::Etc::SourceList="$apt/sources.list" -o Dir::Etc::SourceParts=- \
        -o Dir::State::Lists="$apt/lists" -o Dir::State::Status="$apt/status" \
        -o Dir::Cache="$apt" "$@"
}
arm64_apt -o APT::Update::Error-Mode=any update
arm64_apt install --yes --no-install-recommends --download-only "$@"
for package in "$apt"/archives/*.deb; do dpkg --extract "$package" "$folder/root"; done
