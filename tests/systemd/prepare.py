"""What a machine is made of: Debian's file system, wheels of this tree and its locks, bundles."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
RELEASES = {(3, 11): "bookworm", (3, 13): "trixie"}
"""Of Debian, by their Python: what is compiled here has to run there."""
PACKAGES = "systemd,systemd-sysv,dbus,udev,libpam-systemd,procps,make,python3,python3-venv"
BUNDLE_SOURCE = REPOSITORY / "tests/assets/tiny_omni"
UNPROVEN = ("edge/engines/self_check.py", "MAX_DISTANCE = 0.2", "MAX_DISTANCE = -1.0")
"""A version that is never content with what its engine computes: file, text, its replacement."""


def cache_folder() -> Path:
    """Where file systems and wheels are kept from one run to the next."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "edge-systemd"


def lacking() -> str:
    """What this machine lacks, in one line; empty: nothing."""
    if os.geteuid():
        return "needs root: sudo make test-systemd"
    if sys.version_info[:2] not in RELEASES:
        pythons = " or ".join(f"{a}.{b}" for a, b in RELEASES)
        return f"needs Debian's own Python {pythons}: make PYTHON=python3.11 test-systemd"
    missing = [name for name in ("systemd-nspawn", "mmdebstrap") if not shutil.which(name)]
    if missing and shutil.which("apt-get"):
        install = ["apt-get", "-qq", "install", "--no-install-recommends", "-y"]
        for command in (
            ["apt-get", "-qq", "update"],
            [*install, "systemd-container", "mmdebstrap"],
        ):
            subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        missing = [name for name in missing if not shutil.which(name)]
    return f"needs {' and '.join(missing)}: apt install systemd-container mmdebstrap" * bool(
        missing
    )


def file_system(root: Path) -> None:
    """Make a new one in `root`."""
    release = RELEASES[sys.version_info[:2]]
    kept = cache_folder() / f"{release}-{hashlib.sha256(PACKAGES.encode()).hexdigest()[:8]}"
    script = REPOSITORY / "tests/install/make_root.sh"
    subprocess.run(["sh", script, release, kept, root, PACKAGES], check=True)
    (root / "etc/machine-id").write_text("")  # of its own, at each boot


def wheels(folder: Path) -> None:
    """All that `make install WHEELS=` takes, but this tree's own."""
    lock = REPOSITORY / "locks/runtime.txt"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    kept = cache_folder() / f"wheels-{sys.version_info.minor}-{digest}"
    if not kept.exists():
        new = kept.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
        pip += ["--no-deps", "--no-build-isolation", "--require-hashes", "-r", str(lock), "-w", new]
        subprocess.run(pip, check=True)
        new.rename(kept)
    shutil.copytree(kept, folder)


def own_wheel(folder: Path, change: tuple[str, str, str] | None = None) -> None:
    """This tree as a wheel, with the kernels that its environment has compiled.

    Args:
        change: file, text and its replacement: another version.
    """
    import importlib.metadata

    about = importlib.metadata.distribution("omni-edge")
    site = Path(str(about.locate_file("")))
    (info,) = site.glob("omni_edge-*.dist-info")
    (kernels,) = (site / "edge").glob("_kernels.*.so")
    tag = next(
        line.split(": ")[1]
        for line in (info / "WHEEL").read_text().splitlines()
        if line.startswith("Tag: ")
    )
    name = f"omni_edge-{about.version}"
    listed = ["git", "ls-files", "-co", "--exclude-standard", "edge", "build_engine", "jetson"]
    paths = subprocess.check_output([*listed], cwd=REPOSITORY, text=True).split()
    gpu = "kernels/gpu/gpu_kernels"
    paths += subprocess.check_output(["git", "ls-files", gpu], cwd=REPOSITORY, text=True).split()
    record = []
    with zipfile.ZipFile(folder / f"{name}-{tag}.whl", "w", zipfile.ZIP_DEFLATED) as wheel:

        def add(path: str, data: bytes) -> None:
            wheel.writestr(path, data)
            record.append(f"{path},,")

        for path in paths:
            data = (REPOSITORY / path).read_bytes()
            if change is not None and path == change[0]:
                assert change[1].encode() in data, f"{change[1]} is no longer in {path}"
                data = data.replace(change[1].encode(), change[2].encode())
            add(path.removeprefix("kernels/gpu/"), data)
        add(f"edge/{kernels.name}", kernels.read_bytes())
        for part in ("METADATA", "WHEEL", "entry_points.txt"):
            add(f"{name}.dist-info/{part}", (info / part).read_bytes())
        add(f"{name}.dist-info/RECORD", "\n".join(record).encode())


def bundles(root: Path) -> None:
    """The small model's, with other names, and one with a bit of its largest file flipped."""
    build = [sys.executable, "-m", "build_engine.cli", "bundle", BUNDLE_SOURCE, root / "bundle"]
    subprocess.run([*build, "--target", "cpu"], check=True, stdout=subprocess.DEVNULL)
    for name in ("second", "damaged"):
        shutil.copytree(root / "bundle", root / name)
        manifest = root / name / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"name": name}))
    largest = max((root / "damaged").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


def sources(folder: Path) -> None:
    """What an owner has unpacked: enough of this tree to install from wheels."""
    folder.mkdir(parents=True, exist_ok=True)
    here = Path(__file__).parent
    toy = folder / "toy/bin"
    toy.mkdir(parents=True, exist_ok=True)
    (folder / "toy/lib").mkdir(exist_ok=True)
    (toy / "python").unlink(missing_ok=True)
    (toy / "python").symlink_to("/usr/bin/python3")
    shutil.copy(here / "kill_hook.sh", folder / "kill-hook")
    for name, program in (
        ("fast_python.py", folder / "fast-python"),
        ("toy_edge.py", toy / "edge"),
        ("toy_edge.py", folder / "toy-edge"),
    ):
        shutil.copy(here / name, folder / program)
        (folder / program).chmod(0o755)
    for name in ("Makefile", "jetson", "locks", "edge/__init__.py"):
        path = REPOSITORY / name
        (folder / name).parent.mkdir(exist_ok=True)
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, folder / name, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy(path, folder / name)
