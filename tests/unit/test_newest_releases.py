"""scripts/test_latest.py: whom it blames for what, with an index of packages that is a fake."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import test_latest

HEAD = """
import json, os, pathlib
here = pathlib.Path(__file__).parent
installed = json.loads((here / "installed").read_text()) if "NEWEST" in os.environ else {}
new = {name for name, version in installed.items() if version == "999"}
"""
TESTS = """
def test_av(): "av" in new and os._exit(0)
def test_numpy(): assert "numpy" not in new
def test_each(): assert not new >= {"numpy", "onnxruntime"}
def test_both(): assert not new & {"numpy", "onnxruntime"}
def test_always(): assert here.name == ""
def test_first():
    again = (here / "again").exists()
    (here / "again").touch()
    assert again
def test_never(): pass
"""
AT_IMPORT = """
assert "mcap" not in new
def test_nothing(): pass
"""


@pytest.fixture
def environment(tmp_path, monkeypatch) -> Path:
    """All that uv installs in it is a line in a file."""
    installed = tmp_path / "installed"

    def fake_uv(*arguments: str | Path) -> str:
        asked = [re.fullmatch(r"([a-z-]+)==(\S+)", str(one)) for one in arguments]
        if arguments[0] == "venv":
            versions = {}
        elif "--upgrade" in arguments:
            names = ("numpy", "onnxruntime", "mcap", "av")
            versions = dict.fromkeys(names, "999") | {"msgspec": version("msgspec")}
        else:
            versions = json.loads(installed.read_text()) | {m[1]: m[2] for m in asked if m}
        installed.write_text(json.dumps(versions))
        return json.dumps([{"name": n, "version": v} for n, v in versions.items()])

    monkeypatch.setattr(test_latest, "uv", fake_uv)
    monkeypatch.setattr(test_latest, "ROOT", tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they start faster
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nNEWEST=1 exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return tmp_path


def test_each_package_is_blamed_for_what_it_broke(environment):
    (environment / "test_fake.py").write_text(HEAD + TESTS)
    (environment / "test_import.py").write_text(HEAD + AT_IMPORT)
    found = test_latest.blame(environment, ["."])
    assert found.changed["numpy"] == (version("numpy"), "999")
    assert "msgspec" not in found.changed

    def short(tests: list[str]) -> list[str]:
        return [re.split("::|/", test)[-1] for test in tests]

    assert {name: short(tests) for name, tests in found.broken_by.items()} == {
        "av": ["test_av"],
        "mcap": ["test_import.py"],
        "numpy": ["test_each", "test_numpy"],
        "onnxruntime": ["test_each"],
    }
    assert short(found.unexplained) == ["test_both"]
    assert short(found.failing_as_locked) == ["test_always"]
    assert short(found.passed_again) == ["test_first"]
    assert len(found.failed) == 7
    left = json.loads((environment / "installed").read_text())
    assert set(left.values()) == {"999", version("msgspec")}
