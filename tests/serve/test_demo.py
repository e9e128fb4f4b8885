"""`edge demo`, as an installed package has it, and what it says to type next."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from serve.scripted import TIMEOUT_S

import edge
from edge import demo
from edge.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = """\
#!{python}
import sys
from pathlib import Path
from edge import demo
from edge.cli import main
demo.IN_WHEEL = Path({in_wheel!r})
if __name__ == "__main__":
    sys.exit(main())
"""


def in_wheel() -> dict[str, Path]:
    """Where a wheel's files for the demo come from, by their folder."""
    install = rf"install\(DIRECTORY (.*) DESTINATION edge/{demo.IN_WHEEL.name}\)"
    (sources,) = re.findall(install, (ROOT / "CMakeLists.txt").read_text())
    return {Path(source).name: ROOT / source for source in sources.split()}


def test_a_wheel_brings_what_the_demo_reads(monkeypatch, tmp_path):
    for name, source in in_wheel().items():
        (tmp_path / name).symlink_to(source)
    monkeypatch.setattr(demo, "IN_WHEEL", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    used = demo.files()
    assert used.film.is_file()
    assert (used.session / "session.json").is_file()
    assert (used.checkpoint / "model.safetensors").is_file()
    assert used.kept == tmp_path / "cache" / "edge-demo"
    monkeypatch.setattr(demo, "IN_WHEEL", tmp_path / "absent")
    assert demo.files().kept == ROOT / "build" / "demo"
    assert demo.files().film.samefile(used.film)


def test_it_is_right_and_its_last_lines_work(tmp_path):
    """In a folder with other packages of our names, begun by a script on the PATH."""
    files, work, scripts = (tmp_path / name for name in ("files", "work", "bin"))
    for path in (files, work / "edge", work / "numpy", scripts):
        path.mkdir(parents=True)
    for name in ("edge", "numpy"):
        (work / name / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    for name, source in in_wheel().items():
        (files / name).symlink_to(source)
    script = scripts / "edge"
    script.write_text(SCRIPT.format(python=sys.executable, in_wheel=str(files)))
    script.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(tmp_path / "the cache"),
        "PYTHONUNBUFFERED": "1",
    }
    called = {"cwd": work, "env": environment, "text": True}
    ended = subprocess.run(
        ["edge", "demo"], capture_output=True, timeout=3 * TIMEOUT_S, check=False, **called
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert int(re.findall(r"^(\d) of 5 right$", ended.stdout, re.MULTILINE)[0]) >= demo.N_RIGHT
    run, *others = re.findall(r"^  (edge .*)$", ended.stdout, re.MULTILINE)
    assert [line.split()[1] for line in others] == ["ask", "watch", "--help"]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(["bash", "-c", f"exec {run}"], **pipe, **called) as service:
        try:
            while "segment=video" not in (line := service.stdout.readline()):
                assert line, "ended without having seen anything"
            for line in others:
                words = f"{line} --once" if " watch " in line else line
                answer = subprocess.check_output(words, shell=True, timeout=TIMEOUT_S, **called)
                assert answer.strip(), line
        finally:
            service.terminate()


def test_a_bundle_is_kept_until_what_it_was_made_of_is_newer(tmp_path):
    bundle, source = tmp_path / "bundle", tmp_path / "source"
    source.mkdir()
    bundle.mkdir()
    (source / "cli.py").touch()
    assert demo.is_stale(bundle, [source])
    manifest = bundle / "manifest.json"
    manifest.write_text(f'{{"builder_version": "{edge.__version__}"}}')
    for made_s, stale in ((20, False), (5, True)):
        os.utime(source / "cli.py", (10, 10))
        os.utime(manifest, (made_s, made_s))
        assert demo.is_stale(bundle, [source]) is stale
    os.utime(manifest, (20, 20))
    (source / "cli.pyc").touch()
    assert not demo.is_stale(bundle, [source])
    manifest.write_text('{"builder_version": "0"}')
    assert demo.is_stale(bundle, [source])


def test_without_the_builders_packages_it_says_what_to_type(monkeypatch, tmp_path):
    """As in a service's environment, which has the runtime's."""
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "onnx" else object())
    used = demo.Files(ROOT / "tests/assets/tiny_omni", ROOT / "tests/assets/session", tmp_path)
    with pytest.raises(ConfigurationError, match=r"pip install .*\bonnx|locks/build\.txt"):
        demo.prepare(used)


@pytest.mark.parametrize("program", ["edge", "build_engine"])
def test_without_a_command_they_are_listed(program, tmp_path):
    def said(*words: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", f"{program}.cli", *words]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        return ended.returncode, ended.stdout, ended.stderr

    name = program.replace("_", "-")
    assert said("--version") == (0, f"{name} {edge.__version__}\n", "")
    code, out, error = said()
    assert (code, out) == (2, "")
    assert "commands:" in error
    assert error == said("--help")[1]
