"""Run the tests on the newest releases that pyproject.toml admits, and say which one broke what.

They go into an environment of their own. What fails there runs again with one direct dependency
after the other at its locked version (and with what that version asks for): a package has broken
the tests that pass without its newest release. Ends with 1 if anything failed.

Usage: python scripts/test_latest.py [--environment .venv-latest] [--json] [tests/unit ...]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_HERE = [
    "--ignore=tests/oracle",
    # what holds where just the locked versions are
    "--deselect=tests/unit/test_lock.py::test_this_environment_is_the_locked_one",
    "--deselect=tests/unit/test_advice.py::test_the_command_for_this_very_copy_works",
    "--deselect=tests/serve/test_readme.py::test_every_line_works_as_typed_in_this_order",
]


class Log:
    """Plugin of pytest: writes down what began, failed and ended; what has begun, it leaves out."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "a+", buffering=1, encoding="utf-8")  # noqa: SIM115
        self._file.seek(0)
        self._lines = set(self._file.read().splitlines())

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Go on where the last run was cut short."""
        items[:] = [item for item in items if f"began {item.nodeid}" not in self._lines]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported fails as a whole."""
        self.pytest_runtest_logreport(report)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test that does not end has ended the run."""
        print("began", nodeid, file=self._file)

    def pytest_runtest_logreport(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        """Its set-up may fail, the test, or what cleans up."""
        if report.failed:
            print("failed", report.nodeid, file=self._file)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """It has ended."""
        print("ended", nodeid, file=self._file)


def failures(python: str | Path, tests: Iterable[str], quiet: bool = True) -> set[str]:
    """Which of `tests` fail, by pytest's names; all of them if pytest cannot even begin."""
    with tempfile.TemporaryDirectory(prefix="edge-latest-") as folder:
        log, names = Path(folder, "log"), Path(folder, "names")
        names.write_text("\n".join(tests))
        log.touch()
        command = [python, __file__, "--log", log, f"--rootdir={ROOT}", f"-c{ROOT}/pyproject.toml"]
        ending: set[str] = set()  # tests that ended the process
        while True:
            ended = subprocess.run(
                [*command, "--continue-on-collection-errors", *NOT_HERE, f"@{names}"],
                cwd=ROOT,
                stdout=subprocess.DEVNULL if quiet else sys.stderr,
                stderr=subprocess.DEVNULL if quiet else None,
            )
            seen: dict[str, set[str]] = {"began": set(), "failed": set(), "ended": set()}
            for event, name in (line.split(" ", 1) for line in log.read_text().splitlines()):
                seen[event].add(name)
            if ending == seen["began"] - seen["ended"]:
                break
            ending = seen["began"] - seen["ended"]
    failed = seen["failed"] | ending
    return failed if failed or ended.returncode == 0 else set(tests)


def asked_for(extra: str) -> Iterator[Requirement]:
    """What an extra of pyproject.toml asks for here, through the extras that it includes."""
    for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
        if requirement.name == PROJECT["name"]:
            for other in sorted(requirement.extras):
                yield from asked_for(other)
        elif requirement.marker is None or requirement.marker.evaluate():
            yield requirement


def uv(*arguments: str | Path) -> str:
    """Without pyproject.toml's [tool.uv], which holds packages back for the lock."""
    command = [Path(sys.executable).with_name("uv"), *arguments, "--quiet", "--no-config"]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def say(text: str) -> None:
    print(f"test-latest: {text}", file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a run found."""

    changed: dict[str, tuple[str, str]]
    """Direct dependencies whose newest release is not the locked one: locked, newest."""
    failed: list[str]
    broken_by: dict[str, list[str]]
    unexplained: list[str]
    """They pass at the locked versions, and with no single one of them."""
    failing_as_locked: list[str]
    passed_again: list[str]
    """They failed once only, or only after other tests."""


def blame(environment: Path, tests: list[str]) -> Found:
    """Install the newest, run `tests`, put back one package after the other."""
    python = environment / "bin" / "python"
    tools, extras = list(asked_for("tools")), [*asked_for("dev"), *asked_for("mcp")]
    compile_with = {canonicalize_name(one.name) for one in tools}

    def install(*what: str, to_compile: bool) -> None:
        uv("pip", "install", "--python", python, *what)
        if to_compile:
            own = ("--reinstall-package", PROJECT["name"], "--editable", ".")
            uv("pip", "install", "--python", python, "--no-build-isolation", "--no-deps", *own)

    say(f"the newest releases go into {environment}; the kernels are compiled for it")
    uv("venv", "--seed", "--clear", "--python", sys.executable, environment)
    wanted = [*PROJECT["dependencies"], *map(str, [*tools, *extras])]
    install("--upgrade", *wanted, to_compile=True)
    listed = json.loads(uv("pip", "list", "--python", python, "--format", "json"))
    newest = {one["name"]: one["version"] for one in listed if one["name"] != PROJECT["name"]}
    direct = {canonicalize_name(Requirement(one).name) for one in wanted}
    changed = {n: version(n) for n in sorted(direct & set(newest)) if version(n) != newest[n]}
    for name, locked in changed.items():
        say(f"{name} {locked} -> {newest[name]}")

    failed = failures(python, tests, quiet=False)
    say(f"{len(failed)} tests failed")
    steady = failures(python, failed) & failed if failed else set()
    broken: dict[str, set[str]] = {}
    for name, locked in changed.items() if steady else ():
        try:
            install(f"{name}=={locked}", to_compile=name in compile_with)
            broken[name] = steady - failures(python, steady)
            say(f"with {name} {locked}, {len(broken[name])} of {len(steady)} pass")
        except subprocess.CalledProcessError:
            say(f"{name} {locked} cannot be put back")
        again = [f"{name}=={release}" for name, release in newest.items()]
        install("--no-deps", *again, to_compile=name in compile_with)
    rest = steady.difference(*broken.values())
    before = failures(sys.executable, rest) & rest if rest else set()
    return Found(
        changed={name: (locked, newest[name]) for name, locked in changed.items()},
        failed=sorted(failed),
        broken_by={name: sorted(tests) for name, tests in broken.items() if tests},
        unexplained=sorted(rest - before),
        failing_as_locked=sorted(before),
        passed_again=sorted(failed - steady),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tests", nargs="*", default=["tests"])
    parser.add_argument("--environment", type=Path, default=ROOT / ".venv-latest")
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    arguments = parser.parse_args()
    found = blame(arguments.environment.resolve(), arguments.tests)
    print(f"{'package':20}{'locked':12}{'newest':12}tests that it broke")
    for name, (locked, newest) in found.changed.items():
        broken = found.broken_by.get(name, [])
        print(f"{name:20}{locked:12}{newest:12}{len(broken)}")
        for test in broken:
            print(f"    {test}")
    for text, tests in [
        ("no single package explains", found.unexplained),
        ("fail at the locked versions too", found.failing_as_locked),
        ("passed when they ran again", found.passed_again),
    ]:
        print(f"{text}: {len(tests)}", *tests, sep="\n    ")
    if arguments.json:
        print(json.dumps(dataclasses.asdict(found)))
    sys.exit(bool(found.failed))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--log"]:
        sys.exit(pytest.main(sys.argv[3:], plugins=[Log(sys.argv[2])]))
    main()
