"""Children of the program find its packages, whatever the working folder holds."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge.child import python

ROOT = Path(__file__).resolve().parent.parent.parent
FAKED = ("edge", "build_engine", "gpu_kernels", "numpy", "msgspec", "onnx")
SCRIPT = "import sys\nfrom edge.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """A working folder with other packages of the names of ours and of those that we need."""
    for name in FAKED:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    return tmp_path


def installed(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """`edge` in `folder`, begun as its installed script begins it: by its own path."""
    script = folder / "bin" / "edge"
    script.parent.mkdir(exist_ok=True)
    script.write_text(SCRIPT)
    command = [sys.executable, script, *words]
    return subprocess.run(
        [str(word) for word in command], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_working_folder_is_not_searched(elsewhere):
    code = "import edge, numpy; print(edge.__file__, *sys.argv[1:])"
    said = subprocess.check_output(python(code, "one", 2), cwd=elsewhere, text=True)
    assert said.split() == [str(ROOT / "edge/__init__.py"), "one", "2"]
    plain = subprocess.run([sys.executable, "-c", "import numpy"], cwd=elsewhere, check=False)
    assert plain.returncode, "without it the test's folder would be searched"


def test_packages_of_pythonpath_stay(tmp_path):
    (tmp_path / "of_the_user.py").write_text("here = True")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = "import of_the_user; print(of_the_user.here)"
    assert subprocess.check_output(python(code), env=environment, text=True) == "True\n"


def test_a_bench_is_measured_from_any_folder(bundle, elsewhere):
    ended = installed(elsewhere, "bench", "load", bundle("base"), "--rounds", 1)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])["first_token_s"] > 0


def test_no_other_way_to_a_child_is_left():
    """In the product `sys.executable` is asked for in one place, and not to search a folder."""
    for folder in ("edge", "build_engine", "jetson", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name in ("child.py", "advice.py", "demo.py"):  # the last two only print it
                continue
            text = path.read_text()
            if "executable" in text:  # it takes a minute to parse all of it
                names = {n.attr for n in ast.walk(ast.parse(text)) if hasattr(n, "attr")}
                assert "executable" not in names, path
