"""Installs a release: one tar with all that an installation takes, for boards without a network.

    SHA256SUMS          of every file below
    SHA256SUMS.minisig  who vouches for it, where somebody does
    install.sh          for who has unpacked it and has no `edge` yet
    edge/__init__.py jetson/ locks/
    wheels/             of every Python that it is for

`make wheels` makes it. It is read once, from its first byte to its last, into a folder that only
root can change. Nothing of it runs before all of it was checked; then jetson/install.sh, which is
in it, puts it beside the version that runs, and takes it only once it is ready.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from edge import advice
from edge.child import interpreter
from edge.engines.signature import SUFFIX, require
from edge.errors import BundleError, ConfigurationError, EdgeError, ReleaseError
from edge.files import open_regular

SUMS = "SHA256SUMS"
MAX_SUMS_BYTES = 1 << 20
INSTALL = "jetson/install.sh"
HOME = Path("opt/edge")
SETTINGS = Path("etc/edge/edge.toml")
_LINE = re.compile(r"([0-9a-f]{64})  ([\w+-][\w.+@-]*(?:/[\w+-][\w.+@-]*)*)", re.ASCII)
_OURS = re.compile(r"wheels/omni_edge-([^-]+)-[^-]+-[^-]+-(.+)\.whl")
EXIT_IO_ERROR = 74
COPY = "copy the release again"


@dataclass(frozen=True, slots=True)
class Target:
    """What a release has to fit."""

    machine: str
    """As `uname -m` says it."""
    python: tuple[int, int]
    version: str = ""
    """What is installed; empty: nothing."""


def this_machine(root: Path = Path("/")) -> Target:
    """This one, with this Python and the version that `current` leads to.

    Args:
        root: of the file system that it is installed in.
    """
    try:
        version = Path(os.readlink(root / HOME / "current")).name.rpartition("-")[0]
    except OSError:
        version = ""
    return Target(platform.machine(), sys.version_info[:2], version)


def unpack(
    stream: BinaryIO,
    folder: Path,
    target: Target,
    trusted_keys: Collection[str] = (),
    *,
    older: bool = False,
) -> str:
    """Read a release into an empty folder, and see that it is whole, trusted and of use here.

    Args:
        stream: the tar.
        folder: nobody else can write there.
        trusted_keys: minisign's public keys, of which one must have signed it; none: any release.
        older: take one that is older than what is installed.
    Returns:
        Its version.
    Raises:
        ReleaseError: what is wrong with it.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            return _unpack(tar, folder, target, trusted_keys, older)
    except tarfile.TarError as error:
        raise ReleaseError("the release", f"is damaged or no tar ({error})", COPY) from None
    except BundleError as error:  # of its signature
        remedy = "sign it with `make wheels KEY=...`, or add its key to bundle.trusted_keys"
        raise ReleaseError(Path(error.thing).name, error.problem, remedy) from None


def _unpack(
    tar: tarfile.TarFile,
    folder: Path,
    target: Target,
    trusted_keys: Collection[str],
    older: bool,
) -> str:
    sums: dict[str, str] = {}
    waiting: set[str] = set()
    prefix, signature, version = "", SUMS + SUFFIX, ""
    for member in tar:
        if member.isdir():
            continue
        if not sums:
            prefix, _, name = member.name.rpartition("/")
            if name != SUMS:
                raise ReleaseError(
                    member.name, f"comes before {SUMS}", "give a tar that `make wheels` has made"
                )
            prefix = f"{prefix}/" if prefix else ""
        name = member.name.removeprefix(prefix)
        is_about = name in (SUMS, signature) and not (folder / name).exists()
        if not (member.isreg() and member.name.startswith(prefix)) or member.issparse():
            raise ReleaseError(member.name, "is no file of a release", COPY)
        if is_about and member.size > MAX_SUMS_BYTES:
            raise ReleaseError(name, f"has {member.size} bytes", COPY)
        if not is_about:
            if not version:  # nothing of it is kept before this is known
                _trust(folder, trusted_keys)
                version = _fitting(sums, target, older)
            if name not in waiting:
                raise ReleaseError(name, f"is not in {SUMS}, or there twice", COPY)
            waiting.remove(name)
        found = _write(tar, member, folder / name)
        if not is_about and found != sums[name]:
            raise ReleaseError(name, "was changed", COPY)
        if name == SUMS:
            sums = _read_sums(folder / SUMS)
            waiting = {*sums}
    if not sums or waiting:
        lacking = min(waiting, default=SUMS)
        raise ReleaseError("the release", f"ends before {lacking}", COPY)
    return version


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> str:
    """Put a file there; its SHA-256."""
    digest = hashlib.sha256()
    content = tar.extractfile(member)
    assert content is not None, "it is a regular file"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        while part := content.read(1 << 20):
            digest.update(part)
            file.write(part)
    return digest.hexdigest()


def _read_sums(path: Path) -> dict[str, str]:
    """Name -> SHA-256. No name leads out of the folder."""
    sums: dict[str, str] = {}
    for line in path.read_bytes().decode("ascii", "replace").splitlines():
        found = _LINE.fullmatch(line)
        if found is None or found[2] in sums:
            raise ReleaseError(SUMS, f"has the line {line[:200]!r}", COPY)
        sums[found[2]] = found[1]
    if INSTALL not in sums:
        raise ReleaseError(SUMS, f"has no {INSTALL}", "give a tar that `make wheels` has made")
    return sums


def _trust(folder: Path, trusted_keys: Collection[str]) -> None:
    if trusted_keys:
        require(folder / SUMS, (folder / SUMS).read_bytes(), trusted_keys)


def _fitting(names: Collection[str], target: Target, older: bool) -> str:
    """The release's version.

    Raises:
        ReleaseError: it is not for this machine or this Python, or older than what is installed.
    """
    ours = [found for name in names if (found := _OURS.fullmatch(name))]
    if not ours:
        raise ReleaseError(SUMS, "has no wheel of omni-edge", COPY)
    if not any(found[2].endswith(f"_{target.machine}") for found in ours):
        others = ", ".join(sorted({found[2] for found in ours}))
        raise ReleaseError(
            "the release", f"is for {others}, this is {target.machine}", "take this machine's"
        )
    pythons = {
        (3, int(minor)) for name in names for minor in re.findall(r"-cp3(\d+)-cp3\1-[^/]*$", name)
    }
    if target.python not in pythons:
        has = ", ".join(f"{a}.{b}" for a, b in sorted(pythons)) or "none"
        wanted = ".".join(map(str, target.python))
        raise ReleaseError(
            "the release",
            f"has packages for Python {has}, here it is {wanted}",
            "build one for that",
        )
    version = ours[0][1]
    if target.version and _order(version) < _order(target.version) and not older:
        raise ReleaseError(
            "the release",
            f"is {version}, older than {target.version}, which is installed",
            "give --older too, if that is meant; edge update --back takes what was there before",
        )
    return version


def _order(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])))


def trusted_keys(settings: Path) -> tuple[str, ...]:
    """Whose releases are taken: those of whose bundles are.

    Raises:
        ConfigurationError: the settings are wrong, or there is nothing yet that could check them.
    """
    if not settings.exists():
        return ()
    try:
        import cryptography.exceptions  # noqa: F401  it checks them

        from edge.config import load_config
    except ModuleNotFoundError as error:
        if "trusted_keys" not in settings.read_text(errors="replace"):
            return ()
        raise ConfigurationError(
            settings,
            f"asks for signatures, which nothing here can check yet (no {error.name})",
            f"check it with `minisign -Vm {SUMS}`, and move these settings away for once",
        ) from None
    return load_config(settings).bundle.trusted_keys


@contextmanager
def opened(source: str) -> Iterator[BinaryIO]:
    """A release to read.

    Args:
        source: its path, a URL of a file, or `-`: what comes on stdin.
    """
    if source == "-":
        yield sys.stdin.buffer
        return
    url = urlsplit(source)
    if url.scheme not in ("", "file") or url.netloc not in ("", "localhost"):
        raise ConfigurationError(
            source, "is no file", "fetch it with what you trust for that, and give the file"
        )
    with open_regular(Path(unquote(url.path) if url.scheme else source)) as file:
        yield file


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """No other update goes on."""
    home.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ReleaseError("edge update", "goes on already", "wait for its end") from None
    finally:
        os.close(descriptor)


def install(source: str, *, older: bool = False) -> str:
    """Check a release and install it: the service runs it then, or what it ran before. Its version.

    Args:
        source: as `opened` takes it.
        older: as `unpack` takes it.
    Raises:
        ReleaseError: it was not installed.
    """
    root = Path(os.environ.get("DESTDIR") or "/")
    home = root / HOME
    _no_package()
    with _alone(home), opened(source) as stream:
        folder = home / "release"
        shutil.rmtree(folder, ignore_errors=True)  # of one that was cut off
        folder.mkdir(mode=0o700)
        try:
            keys = trusted_keys(root / SETTINGS)
            version = unpack(stream, folder, this_machine(root), keys, older=older)
            wheels = {"WHEELS": str(folder / "wheels"), "SOURCE": str(folder)}
            python = {"PYTHON": os.path.realpath(interpreter())}
            _run(folder / INSTALL, wheels | python, f"omni-edge {version}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return version


def go_back() -> str:
    """Install the version that was there before; its name.

    Raises:
        ReleaseError: there is none, or it did not become ready.
    """
    root = Path(os.environ.get("DESTDIR") or "/")
    home = root / HOME
    _no_package()
    with _alone(home):
        current = os.path.basename(os.readlink(home / "current"))
        others = sorted(path for path in (home / "versions").iterdir() if path.name != current)
        scripts = [*others[-1].glob(f"lib/python3*/site-packages/{INSTALL}")] if others else []
        if not scripts:
            raise ReleaseError("edge update --back", "has nothing to go back to", "give a release")
        before = Path("/", others[-1].relative_to(root))
        _run(scripts[0], {"BACK": str(before)}, before.name)
    return before.name


def _no_package() -> None:
    if advice.DEBIAN_PACKAGE.exists():
        raise ConfigurationError(
            "omni-edge", "is installed as a package", "sudo apt install ./omni-edge_..._arm64.deb"
        )


def _run(script: Path, settings: dict[str, str], what: str) -> None:
    with subprocess.Popen(["sh", script], env=os.environ | settings) as process:
        while True:
            try:
                status = process.wait()
            except KeyboardInterrupt:
                continue  # it has heard it too, and cleans up
            break
    if status:
        raise ReleaseError(what, "was not installed", "see above; what ran before goes on")


def main(argv: Sequence[str]) -> int:
    """The same with the modules of a release's wheel alone, where nothing is installed yet.

    Args:
        argv: the release.
    """
    try:
        (source,) = argv
        print(f"{install(source)} is installed")
    except EdgeError as error:
        print(f"install: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"install: {error.filename}: {error.strerror}", file=sys.stderr)
        return EXIT_IO_ERROR
    return 0
