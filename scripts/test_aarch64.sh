#!/bin/sh
# The kernels' tests on aarch64: cross-compiled, in Debian's arm64 Python, under an emulator.
#   sh scripts/test_aarch64.sh [python [pytest's arguments]]
# Needs apt, the cross-compiler and qemu; writes into build/aarch64, installs nothing on the system.
set -eu
cd "$(dirname "$0")/.."
python=${1:-python3}
if [ $# -gt 0 ]; then shift; fi
if [ $# = 0 ]; then set -- tests/unit/test_kernels_[!a]*.py tests/unit/test_formats.py; fi
for program in aarch64-linux-gnu-g++ qemu-aarch64-static apt-get dpkg; do
    command -v $program >/dev/null || {
        echo "no $program: apt-get install g++-aarch64-linux-gnu qemu-user-static" >&2
        exit 1
    }
done
here=$PWD/build/aarch64
root=$here/root packages=$here/packages
emulated() {
    PYTHONPATH=$packages OPENBLAS_NUM_THREADS=1 \
        qemu-aarch64-static -L "$root" "$root/usr/bin/python3.11" "$@"
}

if ! emulated -c '' 2>/dev/null; then
    echo "Debian's arm64 Python"
    sh scripts/arm64_packages.sh bookworm "$here" python3.11 libpython3.11-dev libstdc++6
fi

echo "packages and kernels"
# of locks/dev.txt what the kernels' tests import
for name in numpy ml-dtypes msgspec pytest pytest-timeout hypothesis iniconfig packaging pluggy pygments \
    sortedcontainers; do
    sed -n "/^$name==/,/[^\\\\]\$/p" locks/dev.txt
done >"$here/lock.txt"
"$python" -m pip install --quiet --upgrade --target "$packages" --only-binary :all: \
    --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 --python-version 3.11 \
    --no-deps --require-hashes -r "$here/lock.txt"
env -u DESTDIR "$python" -m pip install --quiet --upgrade --target "$here/kernels" --no-deps \
    --no-build-isolation \
    -C cmake.define.CMAKE_SYSTEM_NAME=Linux -C cmake.define.CMAKE_SYSTEM_PROCESSOR=aarch64 \
    -C cmake.define.CMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
    -C cmake.define.CMAKE_CXX_FLAGS="-idirafter $root/usr/include" \
    -C cmake.define.Python_INCLUDE_DIR="$root/usr/include/python3.11" \
    -C install.strip=false .

# An hour of sound takes an hour's work in an emulator, and is no matter of the processor.
emulated scripts/pytest_with_kernels.py "$here"/kernels/edge/_kernels*.so \
    --noconftest --hypothesis-profile ci --deselect \
    tests/unit/test_kernels_mel.py::test_after_an_hour_a_push_does_what_it_did_at_first "$@"
