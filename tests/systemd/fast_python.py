#!/usr/bin/python3 -ES
"""What stands for python3 in an install that shall take seconds: `-m venv` and pip copy what a real
one has made (/src/venv) and put this tree's wheel over it. All else is the real python3's.
"""

import os
import sys
from pathlib import Path

REAL, MADE = "/usr/bin/python3", Path(os.environ.get("EDGE_MADE", "/src/venv"))
PIP = "import runpy; runpy.run_path('/src/fast-python', run_name='pip')\n"


def make_environment(folder: Path) -> None:
    import re
    import shutil  # not where the real one takes over at once

    shutil.copytree(MADE, folder, symlinks=True, copy_function=os.link)
    for script in (folder / "bin").iterdir():
        if not script.is_symlink() and b"#!/opt/edge" in script.read_bytes()[:20]:
            text, mode = script.read_text(), script.stat().st_mode
            script.unlink()
            script.write_text(re.sub(r"/opt/edge/versions/[^/\n]+", str(folder), text))
            script.chmod(mode)


def install(wheels: Path) -> None:
    if "EDGE_MADE" in os.environ:
        return
    import zipfile

    (site,) = Path(sys.prefix, "lib").glob("python3*/site-packages")
    (wheel,) = wheels.glob("omni_edge-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            path = site / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(archive.read(name))


if __name__ == "pip":
    if "install" in sys.argv:
        install(Path(sys.argv[sys.argv.index("--find-links") + 1]))
elif sys.argv[1:3] != ["-m", "venv"]:
    os.execv(REAL, [REAL, *sys.argv[1:]])
elif "--without-pip" in sys.argv:
    make_environment(Path(sys.argv[-1]))
else:
    pip = Path(sys.argv[-1], "lib/python3/site-packages/pip")
    pip.mkdir(parents=True)
    (pip / "__main__.py").write_text(PIP)
