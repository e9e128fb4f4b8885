#!/bin/sh
# check_lock.sh UV: what locks/ pins has wheels for every Python, on the boards and on a PC; the two
# that are only source are named. Markers are evaluated for that machine, nothing is downloaded.
set -eu
uv=$1
cd "$(dirname "$0")/.."
nowhere=$(mktemp -d)
trap 'rm -rf "$nowhere"' EXIT
source_only="--no-binary pyaudio --no-binary tensorrt-rtx-cu13"
for python in 3.10 3.11 3.12 3.13 3.14; do
    for machine in aarch64 x86_64; do
        torch=
        [ $machine = x86_64 ] || torch=torch  # there it is on PyTorch's own index
        for extras in "tools runtime top mcp microphone device build" "dev mcp" "quantize" \
            "oracle $torch"; do
            files=$(for extra in $extras; do echo "-r locks/$extra.txt"; done)
            # glibc 2.35 is Ubuntu 22.04's; JetPack 7 has 2.39
            # shellcheck disable=SC2086  # several words
            "$uv" pip install --quiet --no-config --dry-run --target "$nowhere" --no-deps \
                --require-hashes --only-binary :all: $source_only --python-version $python \
                --python-platform $machine-manylinux_2_35 $files
            echo "locks/: $extras for Python $python on $machine: all there"
        done
    done
done
