"""How many small faults do the tests find? A seeded sample for each package, and those planted.

    make mutants PACKAGE=session N=40
    python scripts/mutants.py --only 3f2a81c0     # a survivor again, against all tests that meet it

Places are drawn by file in proportion to how many each has, at least one of each; which fault is
put into a place is drawn too. The tests that execute it are known from one recorded run
(scripts/covered_tests.py), the cheap ones and those named like the module go first, and the first
that fails ends it. What is found stands in .cache/mutants; a run that was ended goes on there.
"""

from __future__ import annotations

import argparse
import difflib
import fcntl
import hashlib
import json
import math
import os
import queue
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from covered_tests import CACHE, ROOT, SOURCES, TESTS, Covered, record_what_changed, sha256
from mutation_operators import Module
from tqdm import tqdm

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGES = {
    "session": ["edge/session"],
    "features": ["edge/features", "edge/senses"],
    "serve": ["edge/serve"],
    "builder": ["build_engine"],
    "model": ["edge/model"],
    "engines": ["edge/engines"],
}
BY_DEFAULT = ("session", "features", "serve", "builder")
EQUIVALENT = ROOT / "tests" / "mutants" / "equivalent.toml"
PLANTED = ROOT / "tests" / "mutants" / "planted.toml"
CHEAP_S = 0.3
N_EARLY = 3
"""Test files that go first: to collect all that meet a fault takes longer than to find it."""


@dataclass(frozen=True)
class Fault:
    """A fault, and where it can be met."""

    name: str
    """Eight hex digits of file, operator and the lines that change: the same after a shift."""
    path: str
    operator: str
    line: int
    text: str
    before: str
    after: str
    lines: frozenset[int] = frozenset()
    names: tuple[str, ...] = ()
    more: dict[str, str] = field(default_factory=dict)
    """Other files' text, where a fault is in several."""

    @property
    def diff(self) -> str:
        """Against the tree."""
        old = (ROOT / self.path).read_text().splitlines(keepends=True)
        new = self.text.splitlines(keepends=True)
        lines = difflib.unified_diff(old, new, f"{self.path}:{self.line}", self.path, n=2)
        return f"# {self.name} {self.operator}\n" + "".join(lines)


def faults(path: str, n: int, seed: int) -> list[Fault]:
    """`n` places of a file, a fault in each; a larger sample of the same seed holds a smaller."""
    text = (ROOT / path).read_bytes()
    module = Module(text)
    draw = random.Random(f"{seed} {path}")
    places = module.places()
    draw.shuffle(places)
    found: dict[str, Fault] = {}
    for place in places:
        if len(found) == n:
            break
        wrong = [new for new in place.wrong if module.is_fault(place, new)]
        if not wrong:
            continue
        new = module.put(place, draw.choice(wrong)).decode()
        before, after = changed(text.decode(), new)
        line = text[: place.start].count(b"\n") + 1
        same = sum(fault.before == before and fault.after == after for fault in found.values())
        said = f"{path}\n{place.operator}\n{before}\n{after}\n{same}"
        name = hashlib.sha256(said.encode()).hexdigest()[:8]
        found[name] = Fault(
            name, path, place.operator, line, new, before, after, place.lines, place.names
        )
    return list(found.values())


def changed(old: str, new: str) -> tuple[str, str]:
    """The lines that differ, without their indentation."""
    a, b = old.splitlines(), new.splitlines()
    n_same = [x == y for x, y in zip(a, b, strict=False)]
    first = n_same.index(False) if False in n_same else min(len(a), len(b))
    n_same = [x == y for x, y in zip(a[:first:-1], b[:first:-1], strict=False)]
    n_last = n_same.index(False) if False in n_same else len(n_same)
    rows = a[first : len(a) - n_last], b[first : len(b) - n_last]
    before, after = ("\n".join(row.strip() for row in part) for part in rows)
    return before, after


def sample(package: str, n: int, seed: int, only: list[str]) -> list[Fault]:
    """A package's faults: each file's share of `n` is its share of the places."""
    files = [
        str(path.relative_to(ROOT))
        for folder in PACKAGES[package]
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not only or any(word in str(path) for word in only)
    ]
    sizes = {path: len(Module((ROOT / path).read_bytes()).places()) for path in files}
    sizes = {path: size for path, size in sizes.items() if size}
    shares = {path: n * size / sum(sizes.values()) for path, size in sizes.items()}
    counts = {path: max(1, int(share)) for path, share in shares.items()}
    for path in sorted(shares, key=lambda path: int(shares[path]) - shares[path]):
        if sum(counts.values()) < n:
            counts[path] += 1
    return [fault for path in files if path in counts for fault in faults(path, counts[path], seed)]


class Choice:
    """Which tests meet a fault, in which order."""

    def __init__(self) -> None:
        self._covered = Covered()
        texts = {file: file.read_text() for name in SOURCES for file in (ROOT / name).rglob("*.py")}
        self._texts = {str(file.relative_to(ROOT)): text for file, text in texts.items()}
        tests = {str(file.relative_to(ROOT)): file for file in (ROOT / "tests").rglob("test_*.py")}
        self._imports = {path: file.read_text() for path, file in tests.items()}

    def tests(self, fault: Fault, most_s: float) -> dict[str, float]:
        """Test -> seconds at most, the likeliest and cheapest first; `most_s` bounds their sum."""
        if fault.lines:
            ranks = self._covered.tests(fault.path, set(fault.lines))
        else:
            ranks = self._at_import(fault)
        seconds = self._covered.seconds
        stem = Path(fault.path).stem
        chosen: dict[str, float] = {}
        total = 0.0
        for test in sorted(ranks, key=lambda test: (ranks[test], seconds[test])):
            if not chosen or total + seconds[test] <= most_s:
                chosen[test] = 15.0 + 10 * seconds[test]
                total += seconds[test]

        def order(test: str) -> tuple[bool, bool, str, int, float]:
            file = test.split("::")[0]
            return seconds[test] > CHEAP_S, stem not in file, file, ranks[test], seconds[test]

        return {test: chosen[test] for test in sorted(chosen, key=order)}

    def _at_import(self, fault: Fault) -> dict[str, int]:
        """Of what stands outside of functions: who runs a line that names it, or any of the file.

        A file without functions is met by the tests that name its module.
        """
        ranks: dict[str, int] = {}
        for path, text in self._texts.items():
            said = re.compile(
                "|".join(rf"\b{re.escape(name)}\b" for name in fault.names) or r"(?!)"
            )
            rows = [i for i, row in enumerate(text.splitlines(), 1) if said.search(row)]
            met = self._covered.tests(path, set(rows))
            for test, rank in met.items():
                rank += 0 if path == fault.path else 1
                ranks[test] = min(rank, ranks.get(test, rank))
        rows = list(range(1, self._texts[fault.path].count("\n") + 2))
        for test in self._covered.tests(fault.path, set(rows)):
            ranks.setdefault(test, 3)
        dotted = fault.path.removesuffix(".py").replace("/", ".")
        for test in self._covered.seconds:
            if dotted in self._imports.get(test.split("::")[0], ""):
                ranks.setdefault(test, 3)
        return ranks


class Worker:
    """A copy of the tree with an environment of its own, and a process that tries faults in it."""

    def __init__(self, number: int) -> None:
        self._root = CACHE / f"tree-{number}"
        copy_tree(self._root)
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        script = self._root / "scripts" / "mutation_worker.py"
        return subprocess.Popen(
            ["nice", "-n", "5", str(self._root / ".venv" / "bin" / "python"), str(script)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=self._root,
        )  # fmt: skip

    def attempt(self, files: dict[str, str], tests: dict[str, float]) -> dict[str, Any]:
        """What comes of these tests on these texts."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"files": files, "tests": tests}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"mutants: the worker in {self._root} has ended; see above")
        result: dict[str, Any] = json.loads(line)
        return result

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def copy_tree(root: Path) -> None:
    """A copy of the tree, its sources compiled; the environment's files are links but for a few.

    Those name the tree in which it was made.
    """
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name, follow_symlinks=False)
    environment = Path(sys.prefix)
    copied = root / ".venv"
    subprocess.run(["cp", "-al", str(environment), str(copied)], check=True)
    named = [*copied.glob("bin/*"), *copied.glob("lib/python*/site-packages/_editable*")]
    for path in [*named, copied / "pyvenv.cfg"]:
        if path.is_file() and not path.is_symlink():
            text = path.read_bytes()
            new = text.replace(str(ROOT).encode() + b"/", str(root).encode() + b"/")
            if new != text:
                mode = path.stat().st_mode
                path.unlink()
                path.write_bytes(new)
                path.chmod(mode)
    python = str(copied / "bin" / "python")
    compiled = [python, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", *SOURCES]
    subprocess.run(compiled, cwd=root, check=True)
    # Tests are compiled as pytest rewrites them; they are not changed.
    collect = [python, "-m", "pytest", "-q", "--collect-only", "--ignore=tests/oracle", "tests"]
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    found = subprocess.run(collect, cwd=root, capture_output=True, text=True, env=kept)
    if found.returncode:
        raise SystemExit(f"mutants: the tests cannot be collected:\n{found.stdout[-3000:]}")


class Results:
    """What was found, kept as it comes."""

    def __init__(self) -> None:
        self._path = CACHE / "results.json"
        kept = json.loads(self._path.read_text()) if self._path.exists() else {}
        self._faults: dict[str, Any] = kept.get("faults", {})
        tests = sorted((ROOT / "tests").rglob("*.py"))
        self._tests = sha256(b"".join(file.read_bytes() for file in tests))
        self.trusted: set[str] = set(kept.get("trusted", {}).get(self._tests, ()))
        """Tests that pass in a worker on the tree as it is: only what they say counts."""
        self.refused: set[str] = set()
        self._lock = threading.Lock()

    def of(self, fault: Fault) -> dict[str, Any] | None:
        """A kept outcome: what killed stays, what survived holds for the same tests."""
        kept: dict[str, Any] | None = self._faults.get(fault.name)
        if kept and (kept["outcome"] != "survived" or kept["tests"] == self._tests):
            return kept
        return None

    def keep(self, fault: Fault, result: dict[str, Any]) -> None:
        with self._lock:
            self._faults[fault.name] = {**result, "tests": self._tests}
            kept = {"faults": self._faults, "trusted": {self._tests: sorted(self.trusted)}}
            self._path.write_text(json.dumps(kept))


def attempt(
    worker: Worker, fault: Fault, tests: dict[str, float], results: Results
) -> dict[str, Any]:
    """One fault's outcome, by tests that pass without it, and in time however busy the machine."""
    texts = {fault.path: fault.text, **fault.more}
    while True:
        chosen = {name: s for name, s in tests.items() if name not in results.refused}
        if not chosen:
            return {"outcome": "survived", "by": "no test executes it", "seconds": 0.0}
        result = worker.attempt(texts, chosen)
        result["n_tests"] = len(chosen)
        by = result["by"]
        if by not in tests:
            return result
        began_s = time.monotonic()
        if by not in results.trusted or result["outcome"] == "timeout":
            clean = worker.attempt({}, {by: 20 * tests[by]})
            if clean["outcome"] != "survived":
                results.refused.add(by)
                tail = clean["tail"]
                print(f"mutants: {by} fails without a fault too:\n{tail}", file=sys.stderr)
                continue
            results.trusted.add(by)
        if result["outcome"] == "timeout":
            limit_s = tests[by] + 10 * (time.monotonic() - began_s)
            if worker.attempt(texts, {by: limit_s})["outcome"] == "survived":
                tests = {name: s for name, s in tests.items() if name != by}
                continue
        return result


def in_stages(
    worker: Worker, fault: Fault, tests: dict[str, float], results: Results
) -> dict[str, Any]:
    """The same outcome, from the files with most of these tests first and the others only then."""
    files = [name.split("::")[0] for name in tests]
    early = {name for name, _ in Counter(files).most_common(N_EARLY)} | set(files[:1])
    first = {name: s for name, s in tests.items() if name.split("::")[0] in early}
    rest = {name: s for name, s in tests.items() if name not in first}
    result = attempt(worker, fault, first, results)
    if result["outcome"] != "survived" or not rest:
        return result
    last = attempt(worker, fault, rest, results)
    last["seconds"] += result["seconds"]
    last["n_tests"] = result.get("n_tests", 0) + last.get("n_tests", 0)
    return last


def load(path: Path) -> dict[str, Any]:
    """A TOML file."""
    return tomllib.loads(path.read_text())


def equivalents() -> set[tuple[str, str, str, str]]:
    """(file, operator, lines before, lines after) of the faults that change nothing."""
    kept = load(EQUIVALENT).get("equivalent", [])
    return {(one["file"], one["operator"], one["before"], one["after"]) for one in kept}


def wilson(n_hit: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share.

    Source: E. B. Wilson, Probable inference, 1927.
    """
    if not n:
        return 0.0, 1.0
    z = 1.959964
    p = n_hit / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def run(all_faults: list[Fault], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Fault's name -> its outcome; those that are known are not tried again."""
    results = Results()
    choice = Choice()
    fresh = bool(options.only)
    outcomes = {fault.name: results.of(fault) for fault in all_faults if not fresh}
    known = {name: outcome for name, outcome in outcomes.items() if outcome}
    left = [fault for fault in all_faults if fault.name not in known]
    if not left:
        return known
    workers: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    made = [Worker(number) for number in range(min(options.workers, len(left)))]
    for worker in made:
        workers.put(worker)

    def one(fault: Fault) -> None:
        worker = workers.get()
        try:
            tests = choice.tests(fault, math.inf if fresh else options.seconds)
            known[fault.name] = in_stages(worker, fault, tests, results)
            results.keep(fault, known[fault.name])
        finally:
            workers.put(worker)

    with ThreadPoolExecutor(len(made)) as pool:
        tried = [pool.submit(one, fault) for fault in left]
        for ended in tqdm(as_completed(tried), total=len(left), unit="fault", smoothing=0.05):
            ended.result()
    for worker in made:
        worker.end()
    return known


def report(package: str, drawn: list[Fault], outcomes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A package's figures, printed; what survived is written out as differences."""
    known = equivalents()

    def is_equivalent(fault: Fault) -> bool:
        return (fault.path, fault.operator, fault.before, fault.after) in known

    def outcome(fault: Fault) -> str:
        said = str(outcomes[fault.name]["outcome"])
        return "equivalent" if said == "survived" and is_equivalent(fault) else said

    rows: list[dict[str, Any]] = []
    for file in ["", *dict.fromkeys(fault.path for fault in drawn)]:
        counts = Counter(outcome(fault) for fault in drawn if file in ("", fault.path))
        n = sum(counts.values()) - counts["equivalent"]
        n_hit = counts["killed"] + counts["timeout"]
        low, high = wilson(n_hit, n)
        rows.append(
            {
                "file": file or package, "n": sum(counts.values()), "killed": counts["killed"],
                "timeout": counts["timeout"], "survived": counts["survived"],
                "equivalent": counts["equivalent"], "score": round(n_hit / n, 3) if n else None,
                "low": round(low, 3), "high": round(high, 3),
            }
        )  # fmt: skip
    for row in rows:
        print(
            f"{row['file']:34} n {row['n']:3} killed {row['killed']:3} timeout {row['timeout']:2}"
            f" survived {row['survived']:3} equivalent {row['equivalent']:2}  score {row['score']}"
            f" ({row['low']:.2f} to {row['high']:.2f})"
        )
    spent = [float(outcomes[fault.name]["seconds"]) for fault in drawn]
    n_equivalent = rows[0]["equivalent"]
    print(f"{package}: {sum(spent):.0f} s of a core, {sum(spent) / max(1, len(spent)):.1f} a fault")
    if n_equivalent > len(drawn) / 10:
        print(f"{package}: {n_equivalent} of {len(drawn)} are called equivalent: more than a tenth")
    survived = [fault for fault in drawn if outcome(fault) == "survived"]
    path = CACHE / f"{package}.survivors.diff"
    with path.open("w") as written:
        for fault in survived:
            by = outcomes[fault.name]
            tried = by["by"] or f"survived {by['n_tests']} tests, {by['seconds']} s"
            written.write(f"{fault.diff}# {tried}\n\n")
    print(f"{package}: what survived is in {path.relative_to(ROOT)}")
    return {"package": package, "rows": rows, "survived": [fault.name for fault in survived]}


def planted(table: list[dict[str, Any]]) -> list[tuple[Fault, dict[str, Any]]]:
    """Faults of tests/mutants/planted.toml, each in its place.

    Raises:
        SystemExit: a text to be replaced is not in its file exactly once.
    """
    found = []
    for one in table:
        texts: dict[str, str] = {}
        for edit in one["edits"]:
            path = edit["file"]
            text = texts.get(path) or (ROOT / path).read_text()
            if text.count(edit["old"]) != 1:
                n = text.count(edit["old"])
                raise SystemExit(f"{one['name']}: {path} has {n} times, not once:\n{edit['old']}")
            texts[path] = text.replace(edit["old"], edit["new"])
        (path, text), *more = texts.items()
        fault = Fault(one["name"], path, "planted", 0, text, "", "", more=dict(more))
        found.append((fault, one))
    return found


def try_planted(options: argparse.Namespace) -> int:
    """Put in each planted fault, and say which of its tests finds it."""
    results, seconds = Results(), Covered().seconds
    worker = Worker(0)
    n_missed = 0
    for fault, one in planted(load(PLANTED)["planted"]):
        if options.only and fault.name not in options.only:
            continue
        tests = {
            name: 15.0 + 10 * seconds[name]
            for name in sorted(seconds, key=lambda name: seconds[name])
            if any(
                name == test or name.startswith((f"{test}::", f"{test}[")) for test in one["tests"]
            )
        }
        result = attempt(worker, fault, tests, results)
        n_missed += result["outcome"] == "survived"
        print(f"{fault.name:28} {result['outcome']:8} {result['seconds']:5.1f} s  {result['by']}")
    worker.end()
    print(f"planted: {n_missed} were not found" if n_missed else "planted: all were found")
    return min(1, n_missed)


def alone() -> None:
    """Have the copies of this tree for oneself until the process ends.

    Raises:
        SystemExit: another run has them.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        fcntl.flock(os.open(CACHE, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit("mutants: another run is at it in this tree; wait for it") from None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", nargs="+", choices=PACKAGES, default=BY_DEFAULT)
    parser.add_argument("--n", type=int, default=300, help="faults a package")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--files", nargs="+", default=[], help="only files with this in their path")
    parser.add_argument("--only", nargs="+", default=[], help="these faults, by all their tests")
    parser.add_argument(
        "--planted", action="store_true", help="those of tests/mutants/planted.toml"
    )
    parser.add_argument(
        "--tests", nargs="+", choices=TESTS, default=TESTS, help="folders of tests/, kept recorded"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=30.0, help="of tests a fault, at most")
    parser.add_argument("--list", action="store_true", help="only draw, and show what was drawn")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    if not options.list:
        alone()
        record_what_changed(options.tests)
    if options.planted:
        return try_planted(options)
    drawn = {name: sample(name, options.n, options.seed, options.files) for name in options.package}
    if options.only:
        drawn = {
            name: [fault for fault in found if fault.name in options.only]
            for name, found in drawn.items()
        }
        there = {fault.name for found in drawn.values() for fault in found}
        if missing := sorted(set(options.only) - there):
            remedy = "give the --package, --n, --seed and --files with which they were drawn"
            parser.error(f"--only: {', '.join(missing)} are not in this sample; {remedy}")
    if options.list:
        for found in drawn.values():
            print("\n".join(fault.diff for fault in found))
        return 0
    outcomes = run([fault for found in drawn.values() for fault in found], options)
    figures = [report(name, found, outcomes) for name, found in drawn.items() if found]
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
