"""`make mutants` draws what it says, and its outcomes are what tests really say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mutants
import pytest
from covered_tests import lines_then, sha256
from mutation_operators import Module

ROOT = Path(__file__).resolve().parents[2]


def faults_of(text: str) -> set[str]:
    """Each fault as the lines that it leaves where it changes something."""
    module = Module(text.encode())
    return {
        mutants.changed(text, module.put(place, wrong).decode())[1]
        for place in module.places()
        for wrong in place.wrong
        if module.is_fault(place, wrong)
    }


def body(*lines: str) -> str:
    return "def f(a, b, c):\n" + "".join(f"    {line}\n" for line in lines)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("b = a < c", {"b = a <= c", "b = a >= c"}),
        ("b = a is not None", {"b = a is None"}),
        ("b = a not in c", {"b = a in c"}),
        ("b = a - c", {"b = a + c", "b = a"}),
        ("b = a // c", {"b = a / c"}),
        ("b = -a", {"b = a"}),
        ("b = a and not c", {"b = (a or (not c))", "b = (not c)", "b = a", "b = a and c"}),
        ("b = max(a, c)", {"b = min(a, c)", "b = a", "b = c"}),
        ("b = 7", {"b = 8", "b = 6"}),
        ("b = 0.5", {"b = 1.0", "b = 0.25"}),
        ("b = 5000", {"b = 10000", "b = 2500"}),
        ("b = True", {"b = False"}),
        ("b = None", {"b = 0"}),
        ("b = 'text'", {"b = 'XXtextXX'"}),
        ("b = [a, c]", {"b = [c]", "b = [a]"}),
        ("b = {a: c}", {"b = {}"}),
        ("b = a(c, d=c)", {"b = a(c)"}),
        ("b = a[b:c]", {"b = a[:c]", "b = a[b:]"}),
        ("b += a", {"b -= a", "b = a"}),
        ("a(c)", {""}),
        ("b = a if c else b", {"b = a if True else b", "b = a if False else b"}),
        ("b = [d for d in a if d]", {"b = [d for d in a if True]", "b = [d for d in a if False]"}),
        ("return a", {"return None"}),
        ("raise ValueError(a)", {"raise Exception(a)"}),
    ],
)
def test_an_operator_makes_the_faults_that_it_is_named_for(line: str, wrong: set[str]):
    found = faults_of(body(line)) - {"pass"}
    assert found == (wrong - {""})
    if line in ("a(c)", "b += a", "b = a < c", "raise ValueError(a)"):
        assert "pass" in faults_of(body(line))


def test_conditions_loops_and_handlers_have_faults():
    found = faults_of(body("for d in a:", "    if d:", "        continue", "    b = 1"))
    assert {"if True:", "if False:", "break", "pass"} <= found
    assert {"while False:", "continue"} <= faults_of(body("while a:", "    break"))
    found = faults_of(body("try:", "    a()", "except (OSError, ValueError):", "    b = 1"))
    assert {"except ():", "except (OSError):", "except (ValueError):"} <= found


@pytest.mark.parametrize(
    "text",
    [
        body('"""Words."""'),
        body("log.info('%d words', 3)"),
        body("assert a > 1"),
        body("b: int | None"),
        "if TYPE_CHECKING:\n    a = 1\n",
        "class A:\n    def __repr__(self):\n        return 'a' + str(1)\n",
        "class A:\n    def f(self, told=lambda: None):\n        pass\n",
        "Build = Callable[[int, str], bool]\n",
        "__all__ = ['a', 'b']\n",
        "@dataclass(frozen=True)\nclass A:\n    a: int\n",
    ],
)
def test_what_no_test_should_see_is_left_alone(text: str):
    assert faults_of(text) <= {"pass"}


def test_the_words_of_an_error_are_left_alone_and_what_is_put_into_them_is_not():
    found = faults_of(body("raise ValueError(f'is {a + 1}', 'try again')")) - {"pass"}
    assert not any("XX" in fault for fault in found)
    assert "raise ValueError(f'is {a - 1}', 'try again')" in found


def test_an_operator_beside_a_text_stays():
    assert faults_of(body("b = a + 'words'")) == {"b = a + 'XXwordsXX'", "pass"}


def test_a_smaller_sample_is_part_of_a_larger_one_and_each_file_has_its_share():
    few, many = (mutants.sample("model", n, 1, []) for n in (20, 60))
    files = {fault.path for fault in few}
    assert {fault.name for fault in few} <= {fault.name for fault in many}
    assert len(few) == pytest.approx(20, abs=5)
    assert len(many) == 60
    every = {str(path.relative_to(ROOT)) for path in (ROOT / "edge/model").glob("[!_]*.py")}
    assert files == every - {"edge/model/ops.py"}  # it declares, and does nothing
    assert mutants.sample("model", 20, 2, []) != few


def test_a_fault_keeps_its_name_when_its_line_moves(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    text = body("b = a < c", "return b + a")
    (tmp_path / "one.py").write_text(text)
    before = mutants.faults("one.py", 100, 1)
    (tmp_path / "one.py").write_text("# a line more\n\n" + text)
    after = mutants.faults("one.py", 100, 1)
    assert [fault.name for fault in before] == [fault.name for fault in after]
    assert {fault.line + 2 for fault in before} == {fault.line for fault in after}


def test_lines_are_found_again_where_a_file_has_changed_since(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("covered_tests.ROOT", tmp_path)
    monkeypatch.setattr("covered_tests.CACHE", tmp_path)
    old, new = "a\nb\nc\nd\n", "a\nnew\nb\nchanged\nd\n"
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / sha256(old.encode())).write_text(old)
    (tmp_path / "one.py").write_text(new)
    then = lines_then("one.py", sha256(old.encode()))
    assert (then[1], then[3], then[4], then[5]) == (1, 2, 3, 4)


@pytest.mark.parametrize("found_by", ["tests/a.py::1", "tests/e.py::1", None])
def test_files_with_few_tests_go_last_and_none_is_left_out(monkeypatch, found_by: str | None):
    n_tests = {"tests/a.py": 1, "tests/b.py": 3, "tests/c.py": 2, "tests/d.py": 2, "tests/e.py": 1}
    tests = {f"{file}::{i}": 1.0 for file, n in n_tests.items() for i in range(1, n + 1)}
    runs: list[list[str]] = []

    def attempt(_worker, _fault, tried, _results):
        runs.append(list(tried))
        outcome = "killed" if found_by in tried else "survived"
        return {"outcome": outcome, "by": found_by, "seconds": 2.0, "n_tests": len(tried)}

    monkeypatch.setattr(mutants, "attempt", attempt)
    result = mutants.in_stages(None, None, tests, None)
    early = [name for name in tests if "/e.py" not in name]
    assert runs == ([early] if found_by == "tests/a.py::1" else [early, ["tests/e.py::1"]])
    assert result["outcome"] == ("killed" if found_by else "survived")
    assert result["seconds"] == 2.0 * len(runs)
    assert result["n_tests"] == sum(map(len, runs))


def test_the_interval_is_wilsons():
    assert mutants.wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert mutants.wilson(81, 100) == pytest.approx((0.7222, 0.8749), abs=1e-4)


CODE = """
def add(a, b):
    return a + b

def wait(n):
    while n > 0:
        n -= 1
    return n
"""
TESTS = """
import subprocess, sys
from little.one import add, wait

def test_adds():
    assert add(2, 2) == 4

def test_adds_again():
    assert add(3, 4) == 7

def test_a_process_of_its_own():
    code = "from little.one import add; raise SystemExit(add(2, 3) != 5)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

def test_waits():
    assert wait(3) == 0
"""


def test_a_worker_says_what_the_tests_say_of_what_is_on_the_disk(tmp_path: Path):
    """In processes that the tests start, too; nothing compiled is left that a fault could miss."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "mutation_worker.py", tmp_path / "scripts")
    (tmp_path / "little").mkdir()
    (tmp_path / "little" / "__init__.py").write_text("")
    (tmp_path / "little" / "one.py").write_text(CODE)
    (tmp_path / "test_one.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\ntimeout = 300\n")
    every = ["adds", "adds_again", "a_process_of_its_own", "waits"]
    jobs = [
        ({}, every),
        ({"little/one.py": CODE.replace("a + b", "a * b")}, every),
        ({"little/one.py": CODE.replace("a + b", "a - b")}, ["a_process_of_its_own", "adds"]),
        ({"little/one.py": CODE.replace("a + b", "b + a")}, every),
        ({"little/one.py": CODE.replace("n -= 1", "n -= 0")}, every),
        ({"little/one.py": CODE.replace("def add", "def sum")}, every),
        ({}, every),
    ]
    lines = [
        json.dumps({"files": files, "tests": {f"test_one.py::test_{name}": 5.0 for name in names}})
        for files, names in jobs
    ]
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    run = subprocess.run(
        [sys.executable, "scripts/mutation_worker.py"], env=plain,
        input="\n".join(lines) + "\n", cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    outcomes = [json.loads(line) for line in run.stdout.splitlines()]
    assert [(one["outcome"], one["by"].removeprefix("test_one.py::test_")) for one in outcomes] == [
        ("survived", ""),
        ("killed", "adds_again"),
        ("killed", "a_process_of_its_own"),
        ("survived", ""),
        ("timeout", "waits"),
        ("killed", "import"),
        ("survived", ""),
    ]
    assert (tmp_path / "little" / "one.py").read_text() == CODE
    assert not (tmp_path / "little" / "__pycache__").exists()
