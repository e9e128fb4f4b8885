"""What to type for packages that are missing, by how this copy of the project was installed.

Its own name is on no package index. Whoever takes it there would run on every robot that follows an
advice to install it, so advice names a lock of the checkout, or other people's packages.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

VERSIONS = Path("/opt/edge/versions")
"""Where `make install` puts the service's environments."""
DEBIAN_PACKAGE = Path("/var/lib/dpkg/info/omni-edge.list")
"""There where `make deb` made what is installed."""
_OURS = "omni-edge"


def install(extra: str) -> str:
    """The command that installs the packages of an extra of pyproject.toml into this environment.

    Args:
        extra: its name, such as `top`.
    """
    try:
        ours = metadata.distribution(_OURS)
    except metadata.PackageNotFoundError:  # it runs where it lies, nobody has installed it
        return f"install the packages that pyproject.toml names in {extra}"
    source = _source(ours)
    if Path(sys.prefix).is_relative_to(VERSIONS):
        return _install_service(ours, source, extra)
    pip = f"{shlex.quote(sys.executable)} -m pip install"
    lock = source / "locks" / f"{extra}.txt" if source else None
    if lock and lock.is_file():
        options = "--no-deps --no-build-isolation --require-hashes"
        return f"{pip} {options} -r {shlex.quote(str(lock))}"
    return f"{pip} {shlex.join(_packages(ours, extra))}"


def _install_service(ours: metadata.Distribution, source: Path | None, extra: str) -> str:
    """An environment of the service is never changed, but replaced by one with more in it."""
    extras = ",".join(sorted({*_extras(ours), extra}))
    make = "make deb" if DEBIAN_PACKAGE.exists() else "sudo make install"
    where = f"cd {shlex.quote(str(source))} && " if source else "in this version's source: "
    return f"{where}{make} EXTRAS={extras}"


def _source(ours: metadata.Distribution) -> Path | None:
    """The folder that it was installed from, if that is still there."""
    written = json.loads(ours.read_text("direct_url.json") or "{}")
    folder = Path(unquote(urlsplit(written.get("url", "")).path))
    return folder if "dir_info" in written and (folder / "Makefile").is_file() else None


def _packages(ours: metadata.Distribution, extra: str) -> list[str]:
    """What an extra requires, with versions; extras of ours in it are followed."""
    found: list[str] = []
    for line in ours.requires or ():
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        if f"extra == '{extra}'" not in marker.replace('"', "'"):
            continue
        ours_too = re.fullmatch(rf"{_OURS}\[(.*)\]", requirement)
        if ours_too:
            found += (p for other in ours_too[1].split(",") for p in _packages(ours, other.strip()))
        else:
            found.append(requirement)
    return list(dict.fromkeys(found))


def _extras(ours: metadata.Distribution) -> list[str]:
    """The extras of which every package is there."""
    known = ours.metadata.get_all("Provides-Extra") or ()
    return [extra for extra in known if all(map(_is_there, _packages(ours, extra)))]


def _is_there(requirement: str) -> bool:
    name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
