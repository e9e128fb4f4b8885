"""Which test executes which line: recorded once, and again for test files that have changed.

A test's lines are those of its own call and of what was made for it: a fixture of a wider scope
runs for the first test only, and so does each call of a function that such a fixture returns
(`bundle`, `engine`); they are contexts of their own, which a test uses. Processes that a test
starts record under its name. Where a source file has changed since, its lines are found again by
difflib.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import coverage
import pytest

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "mutants"
SOURCES = ("edge", "build_engine", "jetson")
TESTS = ("unit", "session", "serve", "faults", "graphs", "device", "service")
"""Folders of tests/ that choose among; the others need a GPU, devices, torch or minutes."""
WITH_TORCH = ("oracle/test_check.py",)
"""Recorded too where torch is installed: nothing else executes the comparison with transformers."""

SETTINGS = """[run]
source_pkgs = edge, build_engine, jetson
parallel = true
sigterm = true
data_file = {folder}/data
context = ${{EDGE_TEST-}}
disable_warnings = no-data-collected, module-not-imported, already-imported
"""


def sha256(data: bytes) -> str:
    """A file's content, as a name."""
    return hashlib.sha256(data).hexdigest()[:16]


class Recorder:
    """A pytest plugin: the context of each line, what each test uses and how long it takes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._contexts: list[str] = [""]
        self.uses: dict[str, set[str]] = defaultdict(set)
        self.seconds: dict[str, float] = defaultdict(float)
        self.failed: set[str] = set()

    @contextmanager
    def _within(self, name: str) -> Iterator[None]:
        self._contexts.append(name)
        self._switch()
        try:
            yield
        finally:
            self._contexts.pop()
            self._switch()

    def _switch(self) -> None:
        os.environ["EDGE_TEST"] = self._contexts[-1]
        current = coverage.Coverage.current()
        if current is not None:
            current.switch_context(self._contexts[-1])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Function) -> Generator[None, Any, Any]:
        for definitions in item._fixtureinfo.name2fixturedefs.values():
            wide = [found for found in definitions if found.scope != "function"]
            self.uses[item.nodeid].update(f"{found.baseid}::{found.argname}" for found in wide)
        with self._within(item.nodeid):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        if fixturedef.scope == "function":
            return (yield)
        name = f"{fixturedef.baseid}::{fixturedef.argname}"
        with self._within(name):
            value = yield
        kept: Any = fixturedef.cached_result
        if callable(value) and kept is not None:
            value = self._named(value, name)
            fixturedef.cached_result = (value, *kept[1:])
        return value

    def _named(self, make: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(make)
        def call(*args: Any, **kwargs: Any) -> Any:
            context = f"{name}{args}{kwargs or ''}"
            self.uses[self._contexts[-1]].add(context)
            with self._within(context):
                return make(*args, **kwargs)

        return call

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if not report.passed:
            self.failed.add(report.nodeid)

    def pytest_unconfigure(self) -> None:
        uses = {name: sorted(used) for name, used in self.uses.items()}
        tests = {"uses": uses, "seconds": self.seconds, "failed": sorted(self.failed)}
        (self._folder / "tests.json").write_text(json.dumps(tests))


def record(tests: list[str]) -> None:
    """Run these files and keep what each of their tests executes.

    Args:
        tests: paths from the root.
    """
    with tempfile.TemporaryDirectory(prefix="covered-") as name:
        folder = Path(name)
        (folder / "settings").write_text(SETTINGS.format(folder=folder))
        environment = {
            **os.environ,
            "COVERAGE_PROCESS_START": str(folder / "settings"),
            "OPENBLAS_NUM_THREADS": "1",
        }
        command = [sys.executable, __file__, str(folder), *tests]
        subprocess.run(command, cwd=ROOT, env=environment, check=False)
        read(folder, tests)


def read(folder: Path, tests: list[str]) -> None:
    """Turn what was measured into a record for each test file, and keep the sources it is about."""
    run = json.loads((folder / "tests.json").read_text())
    data = coverage.Coverage(data_file=str(folder / "data"), config_file=False)
    data.combine([str(folder)])
    lines: dict[str, dict[str, int]] = defaultdict(dict)
    for path in data.get_data().measured_files():
        source = Path(path)
        if not source.is_relative_to(ROOT) or source.relative_to(ROOT).parts[0] not in SOURCES:
            continue
        place = str(source.relative_to(ROOT))
        for line, contexts in data.get_data().contexts_by_lineno(path).items():
            for context in contexts:
                lines[context][place] = lines[context].get(place, 0) | 1 << line
    shas = {}
    for path in {path for found in lines.values() for path in found}:
        text = (ROOT / path).read_bytes()
        shas[path] = sha256(text)
        (CACHE / "sources").mkdir(parents=True, exist_ok=True)
        (CACHE / "sources" / shas[path]).write_bytes(text)
    for test in tests:
        ids = [name for name in run["seconds"] if name.split("::")[0] == test]
        ids = [name for name in ids if name not in run["failed"]]
        names = [*ids]
        for used in names:
            names += [name for name in run["uses"].get(used, ()) if name not in names]
        found = {
            name: {
                "seconds": round(run["seconds"].get(name, 0.0), 3),
                "uses": run["uses"].get(name, []),
                "lines": {path: hex(bits) for path, bits in lines.get(name, {}).items()},
            }
            for name in names
        }
        kept = {
            "sha": sha256((ROOT / test).read_bytes()),
            "sources": shas,
            "tests": ids,
            "found": found,
        }
        target = CACHE / "covered" / f"{test}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(kept))


def record_what_changed(folders: Iterable[str] = TESTS) -> None:
    """Record the test files that have no record of their present text, a folder at a time."""
    with_torch = WITH_TORCH if importlib.util.find_spec("torch") else ()
    for name in (*folders, *with_torch):
        place = ROOT / "tests" / name
        files = [place] if place.is_file() else sorted(place.glob("test_*.py"))
        stale = [str(file.relative_to(ROOT)) for file in files if is_stale(file)]
        if stale:
            print(f"recording what {len(stale)} files of tests/{name} execute", file=sys.stderr)
            record(stale)


def is_stale(test: Path) -> bool:
    """Whether a test file has no record, or has changed since."""
    kept = CACHE / "covered" / f"{test.relative_to(ROOT)}.json"
    return not kept.exists() or json.loads(kept.read_text())["sha"] != sha256(test.read_bytes())


class Covered:
    """What was recorded, asked by line."""

    def __init__(self) -> None:
        files = sorted((ROOT / "tests").rglob("test_*.py"))
        kept = [CACHE / "covered" / f"{file.relative_to(ROOT)}.json" for file in files]
        self._records = [json.loads(path.read_text()) for path in kept if path.exists()]
        self.seconds = {
            name: record["found"][name]["seconds"]
            for record in self._records
            for name in record["tests"]
        }

    def tests(self, path: str, lines: set[int]) -> dict[str, int]:
        """The tests that execute one of the lines -> 0 where they do so themselves, 1 by a fixture.

        Args:
            path: a source file, from the root.
            lines: as the file has them today, from 1.
        """
        chosen: dict[str, int] = {}
        for record in self._records:
            if path not in record["sources"]:
                continue
            then = lines_then(path, record["sources"][path])
            bits = sum(1 << line for line in {then.get(line, 0) for line in lines} if line)
            hit = {
                name
                for name, found in record["found"].items()
                if int(found["lines"].get(path, "0"), 16) & bits
            }
            for name in record["tests"]:
                if name in hit:
                    chosen[name] = 0
                elif not hit.isdisjoint(self._used(record, name)):
                    chosen[name] = 1
        return chosen

    @staticmethod
    def _used(record: dict[str, Any], name: str) -> list[str]:
        names = [name]
        for used in names:
            names += [one for one in record["found"][used]["uses"] if one not in names]
        return names[1:]


@functools.cache
def lines_then(path: str, sha: str) -> dict[int, int]:
    """Line of a file today -> the line when it was recorded; a new line is the one before it."""
    now = (ROOT / path).read_bytes()
    old = (CACHE / "sources" / sha).read_text().splitlines()
    new = now.decode().splitlines()
    if sha256(now) == sha:
        return {line: line for line in range(1, len(new) + 1)}
    lines: dict[int, int] = {}
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for _, start, end, first, last in matcher.get_opcodes():
        for line in range(first, last):
            lines[line + 1] = min(start + line - first, max(end - 1, start)) + 1
    return lines


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", *sys.argv[2:]], plugins=[Recorder(Path(sys.argv[1]))]))
