"""Try faults in a copy of the tree, each in a child of a process that has the packages loaded.

It is started by the copy's own Python. A job is a line of JSON on stdin, its outcome one on stdout.
Nothing of the project is imported here: each child imports it with the fault in it, from the disk,
as the processes do that the tests start. Compiled files in the copy are checked by their source's
hash, and none are written, so that a fault of the same length in the same second is not missed.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any, TextIO

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = """
    aiohttp av hypothesis jinja2 jsonschema llguidance mcap.reader mcap.writer ml_dtypes msgspec
    numpy.testing onnx onnxruntime prometheus_client soxr tokenizers
"""
"""What takes long to import, of other people's."""
MAX_MEMORY_BYTES = 6 << 30
MAX_FILE_BYTES = 4 << 30
PR_SET_CHILD_SUBREAPER = 36


class Watched:
    """A pytest plugin: the tests in the order asked for, each with a limit; what failed is told."""

    def __init__(self, limits: dict[str, float], told: TextIO, log: TextIO) -> None:
        self._limits = limits
        self._order = {name: place for place, name in enumerate(limits)}
        self._told = told
        self._log = log

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid in self._order]
        items.sort(key=lambda item: self._order[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._tell("began", item.nodeid)
        faulthandler.dump_traceback_later(self._limits[item.nodeid], exit=True, file=self._log)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._tell("failed", report.nodeid)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self._tell("finished", str(int(exitstatus)))

    def _tell(self, what: str, of: str) -> None:
        print(json.dumps([what, of]), file=self._told, flush=True)


def attempt(job: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Run a job's tests until one fails.

    Args:
        job: `files` (path from the root -> text with the fault), `tests` (name -> seconds at most).
        scratch: a folder for the tests' own files, with a short name for the sake of sockets.

    Returns:
        `outcome` (killed, timeout, survived), `by` (a test, or "import"), `seconds` of a core.
    """
    before_s = used_s()
    before = {path: (ROOT / path).read_text() for path in job["files"]}
    told = scratch / "told"
    try:
        for path, text in job["files"].items():
            (ROOT / path).write_text(text)
        child = os.fork()
        if child == 0:
            become_tests(job["tests"], told, scratch)
        _, status = os.waitpid(child, 0)
        end_descendants()
    finally:
        for path, text in before.items():
            (ROOT / path).write_text(text)
    events = [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
    seconds = round(used_s() - before_s, 2)
    outcome, by = judge(events, os.waitstatus_to_exitcode(status))
    return {"outcome": outcome, "by": by, "seconds": seconds, "log": str(scratch / "log")}


def used_s() -> float:
    """Seconds of a core that this process's children have used, and theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def judge(events: list[tuple[str, str]], code: int) -> tuple[str, str]:
    """What the told events mean: outcome, and what found the fault."""
    failed = [of for what, of in events if what == "failed"]
    began = [of for what, of in events if what == "began"]
    finished = [of for what, of in events if what == "finished"]
    if failed:
        return "killed", failed[0]
    if not finished:
        return ("timeout" if code == 1 and began else "killed"), began[-1] if began else "import"
    if finished == ["0"]:
        return "survived", ""
    return ("survived", "no test ran") if finished == ["5"] else ("killed", "import")


def become_tests(tests: dict[str, float], told: Path, scratch: Path) -> None:
    """In the child: run the tests and end the process."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    code = 3
    with contextlib.suppress(BaseException), told.open("w") as told_to:
        log = (scratch / "log").open("w")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        os.environ["TMPDIR"] = str(scratch)
        tempfile.tempdir = None
        files = list(dict.fromkeys(name.split("::")[0] for name in tests))
        options = ["-x", "-q", "-o", "timeout=0", f"--basetemp={scratch / 'p'}"]
        quiet = ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]
        code = pytest.main([*options, *quiet, *files], plugins=[Watched(tests, told_to, log)])
        sys.stdout.flush()
    os._exit(int(code))


def end_descendants() -> None:
    """End what the tests have left running; all of it has become this process's children."""
    while True:
        with contextlib.suppress(ProcessLookupError):
            for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def main() -> None:
    os.environ.update(
        OPENBLAS_NUM_THREADS="1", ORT_DISABLE_TELEMETRY="1", PYTHONDONTWRITEBYTECODE="1"
    )
    sys.dont_write_bytecode = True
    os.chdir(ROOT)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for name in HEAVY.split():
        importlib.import_module(name)
    for line in sys.stdin:
        scratch = Path(tempfile.mkdtemp(prefix="m", dir="/tmp"))
        scratch.chmod(0o755)  # tests become other users
        result = attempt(json.loads(line), scratch)
        result["tail"] = (scratch / "log").read_text(errors="replace")[-3000:]
        shutil.rmtree(scratch, ignore_errors=True)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
