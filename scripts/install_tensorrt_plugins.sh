#!/bin/sh
# install_tensorrt_plugins.sh PYTHON FOLDER: NVIDIA's own Python of TensorRT's plugins, for the tests.
#
# Beside the environment, not in it, and without the native module: tests put a stand-in of theirs in
# its place. The wheel is JetPack 7.2's, for its Python, whatever runs here.
set -eu
rm -rf "$2"
new=$(mktemp)
trap 'rm -f "$new"' EXIT
sed "s/ ; [^\\]*/ /" locks/plugins.txt >"$new"  # its marker is about the Python that runs here
"$1" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
    --python-version 3.12 --platform manylinux_2_28_x86_64 --only-binary :all: --no-compile \
    --target "$2" -r "$new"
rm "$2/tensorrt_bindings/tensorrt.so" "$2/tensorrt_bindings/__init__.py"
