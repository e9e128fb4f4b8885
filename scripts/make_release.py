"""`make wheels`: a release, one tar with which a board installs without network and compiler.

It holds the wheels of locks/ for each Python, with the hashes that are there, and those that nobody
publishes: this project's, cross-compiled once (it keeps to Python's stable ABI), and PyAudio's,
with the headers of each Python from the Debian or Ubuntu that has it, and PortAudio in it.
"""

from __future__ import annotations

import argparse
import getpass
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement

import edge
from build_engine.signing import SecretKey, read_secret_key
from edge.engines.signature import SUFFIX
from edge.errors import EdgeError
from edge.update import SUMS

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build/release"
SUITES = {"3.10": "jammy", "3.11": "bookworm", "3.12": "noble", "3.13": "trixie"}
"""Who has which Python: JetPack 6 is jammy, JetPack 7 is noble."""
EXTRAS = ("runtime", "top", "device", "microphone", "mcp", "release")
GLIBC = (2, 35)
"""Jammy's, the oldest of them; what is compiled here has to load there."""
PYAUDIO = "pyaudio"
# Debian's PortAudio also knows JACK, whose library a board would need then.
NO_JACK = """
int PaJack_Initialize(void **api, int index);
int PaJack_Initialize(void **api, int index) { (void)index; *api = 0; return 0; }
"""
TOOLCHAIN = "aarch64-linux-gnu-"


def say(text: str) -> None:
    print(f"make wheels: {text}", flush=True)


def run(*words: object, **environment: str) -> None:
    subprocess.run(
        [str(word) for word in words], check=True, cwd=ROOT, env=os.environ | environment
    )


def pip(*words: object, **environment: str) -> None:
    run(
        sys.executable, "-m", "pip", *words, "--quiet", "--disable-pip-version-check", **environment
    )


def pins(extra: str, python: str) -> dict[str, str]:
    """What a lock has for a Python on the boards: name -> lines without markers."""
    there = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_machine": "aarch64",
        "platform_python_implementation": "CPython",
        "sys_platform": "linux",
    }
    found = {}
    for block in re.split(r"\n(?=[a-z])", (ROOT / f"locks/{extra}.txt").read_text()):
        first, *hashes = block.split("\n")
        pin = Requirement(first.rstrip("\\ "))
        if pin.marker is None or pin.marker.evaluate(there):
            found[pin.name] = "\n".join([f"{pin.name}{pin.specifier} \\", *hashes]).rstrip()
    return found


def fetch(python: str, folder: Path) -> None:
    """The published wheels for a Python."""
    wanted = {name: text for extra in EXTRAS for name, text in pins(extra, python).items()}
    wanted.pop(PYAUDIO)
    lock = WORK / f"{python}.txt"
    lock.write_text("\n".join(wanted.values()) + "\n")
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(GLIBC[1], 16, -1)]
    words = [f"--platform={name}" for name in (*platforms, "manylinux2014_aarch64")]
    words += [f"--abi={abi}" for abi in (f"cp{python.replace('.', '')}", "abi3", "none")]
    words += [f"--python-version={python}", "--implementation=cp", "--only-binary=:all:"]
    pip("download", "--no-deps", "--require-hashes", *words, "--dest", folder, "-r", lock)


def headers(python: str) -> Path | None:
    """The files of the arm64 system that has a Python, to compile for it; None: not to be had."""
    folder = WORK / SUITES[python]
    if not (folder / "ready").exists():
        script = ROOT / "scripts/arm64_packages.sh"
        names = (f"libpython{python}-dev", "portaudio19-dev", "libasound2-dev")
        if subprocess.run(["sh", script, SUITES[python], folder, *names], check=False).returncode:
            return None
        (folder / "ready").touch()
    return folder / "root"


def cross(root: Path, python: str) -> dict[str, str]:
    """What makes setuptools and scikit-build-core build for the boards."""
    include = root / f"usr/include/python{python}"
    flags = f"-I{include} -idirafter {root}/usr/include"
    return {
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",
        "SETUPTOOLS_EXT_SUFFIX": f".cpython-{python.replace('.', '')}-aarch64-linux-gnu.so",
        "CC": f"{TOOLCHAIN}gcc",
        "LDSHARED": f"{TOOLCHAIN}gcc -shared",
        "CFLAGS": flags,
        "CMAKE_ARGS": " ".join(
            (
                "-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64",
                f"-DCMAKE_CXX_COMPILER={TOOLCHAIN}g++ -DPython_INCLUDE_DIR={include}",
                f"-DCMAKE_CXX_FLAGS='-idirafter {root}/usr/include'",
            )
        ),
    }


def own_wheel(folder: Path) -> None:
    """This project's, once for all Pythons."""
    python = "{}.{}".format(*sys.version_info)
    root = headers(python)
    if root is None:
        raise SystemExit(f"make wheels: needs Python {python}'s headers for the boards: see above")
    pip(
        *("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT),
        **cross(root, python),
    )


def pyaudio_wheel(python: str, folder: Path) -> bool:
    """PyAudio's for a Python; whether that Python's headers were to be had."""
    root = headers(python)
    if root is None:
        return False
    work = WORK / f"pyaudio-{python}"
    work.mkdir(exist_ok=True)
    (work / "lock.txt").write_text(pins("microphone", python)[PYAUDIO] + "\n")
    (work / "no_jack.c").write_text(NO_JACK)
    run(f"{TOOLCHAIN}gcc", "-fPIC", "-O2", "-c", work / "no_jack.c", "-o", work / "no_jack.o")
    libraries = root / "usr/lib/aarch64-linux-gnu"
    # what the linker finds first as -lportaudio: it goes into the wheel, as a board has none
    static = f"INPUT({work}/no_jack.o {libraries}/libportaudio.a {libraries}/libasound.so -lm)\n"
    (work / "libportaudio.so").write_text(static)
    settings = cross(root, python)
    settings["LDSHARED"] += f" -L{work} -Wl,--exclude-libs,ALL"
    pip(
        *("wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir", "--require-hashes"),
        *("--no-binary", PYAUDIO, "--wheel-dir", work, "-r", work / "lock.txt"),
        **settings,
    )
    (wheel,) = work.glob("*.whl")
    tag = f"cp{python.replace('.', '')}"
    tags = (f"--python-tag={tag}", f"--abi-tag={tag}", "--platform-tag=linux_aarch64")
    run(sys.executable, "-m", "wheel", "tags", "--remove", *tags, wheel)
    (wheel,) = work.glob("*.whl")
    wheel.replace(folder / wheel.name)
    return True


def check_libraries(wheel: Path) -> None:
    """What was compiled here asks for no newer C library than the boards have.

    Raises:
        SystemExit: it does.
    """
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not name.endswith(".so"):
                continue
            wanted = re.findall(rb"GLIBC_(\d+)\.(\d+)", archive.read(name))
            newest = max(((int(a), int(b)) for a, b in wanted), default=GLIBC)
            if newest > GLIBC:
                raise SystemExit(
                    f"make wheels: {name} asks for glibc {newest[0]}.{newest[1]}, the boards have "
                    f"{GLIBC[0]}.{GLIBC[1]}: build it on Debian 12 or Ubuntu 22.04"
                )


def pack(wheels: Path, out: Path, key: SecretKey | None) -> Path:
    """The tar of all wheels and of what installs them."""
    files = {f"wheels/{path.name}": path for path in sorted(wheels.iterdir())}
    listed = subprocess.check_output(
        ["git", "ls-files", "jetson", "locks"], cwd=ROOT, text=True
    ).split()
    locks = {f"locks/{extra}.txt" for extra in EXTRAS}
    files |= {
        name: ROOT / name
        for name in ("edge/__init__.py", "LICENSE", *listed)
        if not name.startswith("locks/") or name in locks
    }
    files["install.sh"] = ROOT / "jetson/install_release.sh"
    about = WORK / "about"
    about.mkdir(exist_ok=True)
    (about / SUMS).write_text(
        "".join(
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n"
            for name, path in files.items()
        )
    )
    first = [about / SUMS]
    if key is not None:
        key.sign(about / SUMS)
        first.append(about / f"{SUMS}{SUFFIX}")
    top = f"omni-edge-{edge.__version__}-aarch64"
    out.mkdir(parents=True, exist_ok=True)
    made = out / f"{top}.tar"
    partial = made.with_suffix(".partial")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, path in ({path.name: path for path in first} | files).items():
            member = tar.gettarinfo(path, f"{top}/{name}")
            member.uid = member.gid = member.mtime = 0
            member.uname = member.gname = "root"
            member.mode = 0o644
            with path.open("rb") as file:
                tar.addfile(member, file)
    partial.replace(made)
    return made


def table(wheels: Path, pythons: Sequence[str]) -> None:
    """What the release has for whom."""
    names = [path.name.lower() for path in wheels.iterdir()]
    for python in pythons:
        tag = f"cp{python.replace('.', '')}"
        n_own = sum(f"-{tag}-{tag}-" in name for name in names)
        n_any = sum("-abi3-" in name or "-none-" in name for name in names)
        sound = any(name.startswith(f"{PYAUDIO}-") and f"-{tag}-" in name for name in names)
        say(
            f"Python {python} ({SUITES[python]}): {n_own} wheels of its own, {n_any} of any; "
            f"microphones {'yes' if sound else 'only by the system (python3-pyaudio)'}"
        )


def main() -> int:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--key", type=Path, help="minisign's secret key to sign with")
    command.add_argument("--out", type=Path, default=ROOT / "dist")
    command.add_argument("--pythons", nargs="+", choices=SUITES, default=[*SUITES])
    arguments = command.parse_args()
    wheels = WORK / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir(parents=True)
    try:
        key = read_secret_key(arguments.key, getpass.getpass) if arguments.key else None
        say("compiling the kernels for aarch64")
        own_wheel(wheels)
        for python in arguments.pythons:
            say(f"fetching the packages for Python {python}")
            fetch(python, wheels)
            if not pyaudio_wheel(python, wheels):
                say(f"the headers of Python {python} are not to be had: PyAudio is left out")
        for wheel in wheels.glob("*-linux_aarch64.whl"):
            check_libraries(wheel)
        made = pack(wheels, arguments.out, key)
    except EdgeError as error:
        print(f"make wheels: {error}", file=sys.stderr)
        return error.exit_code
    table(wheels, arguments.pythons)
    say(f"{made}: {made.stat().st_size / 1e6:.0f} MB{', signed' if key else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
