#!/bin/sh
# Speech for the tests: Debian's alsa-utils ships recordings, flite speaks sentences in several
# voices; and what stands for cameras and microphones: PulseAudio, GStreamer with an RTSP server,
# systemd's checker of units, strace, which sees what a command opens, and minisign, which signs what
# we verify. Without root or apt the tests that need them are skipped, with this reason (and fail
# where CI=true).
set -eu
missing=
[ -e /usr/share/sounds/alsa/Front_Center.wav ] || missing="alsa-utils"
command -v flite >/dev/null || missing="$missing flite"
command -v pulseaudio >/dev/null ||
    missing="$missing pulseaudio pulseaudio-utils libasound2-plugins"
[ -e /usr/include/portaudio.h ] || missing="$missing portaudio19-dev"
command -v systemd-analyze >/dev/null || missing="$missing systemd"
command -v strace >/dev/null || missing="$missing strace"
command -v minisign >/dev/null || missing="$missing minisign"
command -v ffmpeg >/dev/null || missing="$missing ffmpeg"
[ -e /usr/lib/python3/dist-packages/gi ] && [ -e /usr/share/doc/gir1.2-gst-rtsp-server-1.0 ] ||
    missing="$missing python3-gi gir1.2-gst-rtsp-server-1.0 gir1.2-gst-plugins-base-1.0
        gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad
        gstreamer1.0-plugins-ugly"
if [ -z "$missing" ]; then exit 0; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "install $missing to run the tests on recorded and synthesized speech" >&2
    exit 0
fi
install() { apt-get install --quiet --yes --no-install-recommends $missing >/dev/null; }
install 2>/dev/null || {
    apt-get update --quiet >/dev/null
    install
}
