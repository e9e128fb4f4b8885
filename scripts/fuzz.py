"""Look for what the tests do not find: random examples, for as long as one likes.

Three quarters of the time go to the tests' properties, an equal share to each, and a quarter to
the broken clients of scripts/fuzz_socket.py against a service. What fails is printed, with how to
repeat it. Examples are kept in .cache/fuzz/examples; the next run tries them first. Ends with 1 if
anything failed.

Usage:
    python scripts/fuzz.py --seconds 3600
    python scripts/fuzz.py --seconds 300 tests/unit -k scenes  # properties only, pytest's words
"""

from __future__ import annotations

import argparse
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ".cache/fuzz/bundle"
PROPERTIES = [f"--ignore={ROOT}/tests/oracle", "-mhypothesis", "--hypothesis-profile=fuzz"]
TIMEOUT_S = 1200
"""Of one test: to make what failed small takes Hypothesis up to 300 s."""
QUIET = ["-pno:terminal", "-pno:cacheprovider", "-oaddopts=", f"--timeout={TIMEOUT_S}"]


class Rounds:
    """Plugin of pytest: runs the collected tests again and again until the time is over.

    A test that failed or was skipped is not run again.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.n_runs: Counter[str] = Counter()
        self.failures: dict[str, str] = {}
        """Of a test, what Hypothesis says of it, or the error."""
        self._ended: set[str] = set()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be read is a failure."""
        if report.failed:
            self.failures[report.nodeid] = report.longreprtext

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """The test that has had the least time is next."""
        began_s = time.monotonic()
        spent_s = dict.fromkeys(session.items, 0.0)
        bar = tqdm(
            total=round(self._seconds), bar_format="{n}/{total} s {bar} {desc}", mininterval=1.0
        )
        item = next(iter(spent_s), None)
        while item is not None and time.monotonic() - began_s < self._seconds:
            others = [other for other in spent_s if other is not item]
            following = min(others, key=spent_s.__getitem__, default=None)
            item_began_s = time.monotonic()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            now_s = time.monotonic()
            spent_s[item] += now_s - item_began_s
            self.n_runs[item.nodeid] += 1
            if item.nodeid in self._ended:
                del spent_s[item]
            bar.set_description_str(
                f"{self.n_runs.total()} runs of {len(self.n_runs)} tests, "
                f"{len(self.failures)} failed",
                refresh=False,
            )
            bar.update(round(now_s - began_s) - bar.n)
            item = following or next(iter(spent_s), None)
        bar.close()
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Keep and print what failed, when it does."""
        report = yield
        if not report.passed:
            self._ended.add(item.nodeid)
        if report.failed and call.excinfo is not None:
            tqdm.write(f"\n{item.nodeid}\n{report.longreprtext}")
            self.failures[item.nodeid] = _said(call.excinfo.value)
        return report


def _said(error: BaseException) -> str:
    """The error, the example that led to it, and how to repeat it."""
    first = str(error).partition("\n")[0]
    notes = [f"{type(error).__name__}: {first}", *getattr(error, "__notes__", ())]
    notes += [_said(one) for one in getattr(error, "exceptions", ())]
    return "\n".join(notes)


def try_properties(seconds: float, arguments: list[str]) -> dict[str, str]:
    """What failed, by test."""
    rounds = Rounds(seconds)
    code = pytest.main([*PROPERTIES, *QUIET, *arguments], plugins=[rounds])
    if not rounds.n_runs and not rounds.failures:
        sys.exit(f"fuzz: pytest ran nothing and ended with {code!r}")
    least = min(rounds.n_runs.values(), default=0)
    print(f"{len(rounds.n_runs)} tests, {rounds.n_runs.total()} runs, each at least {least} times")
    if code == pytest.ExitCode.INTERRUPTED and not rounds.failures:
        sys.exit("fuzz: interrupted; nothing had failed until then")
    return rounds.failures


def try_service(seconds: float) -> dict[str, str]:
    """What broken clients do to a service, if anything."""
    shutil.rmtree(ROOT / BUNDLE, ignore_errors=True)
    build = ["-m", "build_engine.cli", "bundle", "tests/assets/tiny_omni", BUNDLE]
    subprocess.run([sys.executable, *build, "--target", "cpu"], check=True, cwd=ROOT)
    command = ["scripts/fuzz_socket.py", BUNDLE, "tests/assets/session/session.mp4"]
    command += ["--seconds", str(round(seconds)), "--seed", str(random.getrandbits(32))]
    done = subprocess.run(
        [sys.executable, *command], stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT
    )
    if done.returncode == 0:
        return {}
    return {shlex.join(command): (done.stderr.strip().splitlines() or ["it said nothing"])[-1]}


def main() -> None:
    """Look, print, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1200)
    words, arguments = parser.parse_known_args()
    if arguments:
        failures = try_properties(words.seconds, arguments)
    else:
        failures = try_properties(0.75 * words.seconds, [str(ROOT / "tests")])
        failures |= try_service(0.25 * words.seconds)
    for name, said in failures.items():
        print(f"\n{name}\n{said}")
    if failures:
        print("\nTo keep one: its example above the test as @example(...), its seed in the test.")
        sys.exit(f"fuzz: {len(failures)} failed: " + ", ".join(failures))
    print("fuzz: nothing failed")


if __name__ == "__main__":
    main()
