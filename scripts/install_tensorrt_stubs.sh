#!/bin/sh
# install_tensorrt_stubs.sh PYTHON FOLDER: TensorRT's type stubs for mypy, made readable for it.
#
# Beside the environment, not in it: there the empty package would pass for an installed TensorRT.
set -eu
"$1" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --require-hashes \
    --target "$2" -r locks/stubs.txt
# Generated stubs: a keyword as a parameter's name, and a required parameter behind optional ones.
sed -i -e 's/\([(, ]\)in: /\1in_: /' \
    -e 's/channel_axis: int) -> IScaleLayer/channel_axis: int = ...) -> IScaleLayer/' \
    "$2/tensorrt_bindings/tensorrt.pyi"
