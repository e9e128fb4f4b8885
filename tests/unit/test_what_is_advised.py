"""Every command that a message, a docstring, a script or a page of this project gives to type.

Nothing may install a package that is not asked for in pyproject.toml or a lock, or pinned where it
is named, and least of all one of this project's own name, which nobody keeps for us. What is called
of `edge`, `build-engine` and `make` has to exist.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import build_engine.cli
import edge.cli

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("edge", "build_engine", "jetson", "kernels", "scripts", "tests", "docs", ".ci")
PAGES = (".md", ".toml", ".sh", ".py", ".pyi", ".service", ".rules", ".conf", ".txt", "")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
JS = json.loads((ROOT / "tests/serve/js/package.json").read_text())["dependencies"]


def normal(name: str) -> str:
    """A package's name as indices compare it, without extras and versions."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", name, maxsplit=1)[0]).lower()


OURS = normal(PROJECT["name"])
ASKED_FOR = {
    normal(requirement)
    for requirements in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for requirement in requirements
} - {OURS}


def files() -> Iterator[Path]:
    """Whatever a person reads, or a shell or Python runs; not this file, which names bad ones."""
    found = [path for name in FOLDERS for path in (ROOT / name).rglob("*")]
    found += [path for path in ROOT.iterdir() if path.name not in (".git", ".gitignore")]
    for path in sorted(found):
        if path.suffix in PAGES and path.is_file() and path != Path(__file__):
            yield path


def texts(path: Path) -> Iterator[str]:
    """A page or script as it is, lines that go on joined; of Python the comments and strings."""
    text = path.read_text()
    if path.suffix not in (".py", ".pyi"):
        yield re.sub(r"\\\n\s*", " ", text)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.JoinedStr):
            parts = (v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
            yield "".join(str(part) for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"\\\n\s*", " ", node.value)
    # Of a string with the sign in it, too: the tokenizer would know, and takes ten times as long.
    yield from (line.partition("#")[2] for line in text.splitlines() if "#" in line)


@cache
def all_texts() -> list[tuple[str, str]]:
    """Each text with the file's name in the tree."""
    return [(str(path.relative_to(ROOT)), text) for path in files() for text in texts(path)]


INSTALLERS = re.compile(
    r"(?P<pip>\bpip3? (?:install|download|wheel)|(?:\$\(PIP\)|\{PIP\})|\buv (?:pip install|add)|"
    r"\bpipx (?:install|run)|\buvx)(?= )|"
    r"\b(?:npm (?:install|i|add|exec)|npx|yarn add)(?= )"
)
TAKES_VALUE = re.compile(
    r"-[rcCtdwf]|--(requirement|constraint|target|dest|wheel-dir|find-links|prefix|platform|abi|"
    r"implementation|python-version|only-binary|no-binary|index-url|upgrade-strategy|"
    r"fetch-(retries|timeout)|loglevel)"
)
LOCAL = re.compile(r"[./${~<]")
"""How a path or a variable begins."""


def wanted(line: str) -> Iterator[tuple[str, str]]:
    """(installer, package) of what a line has installed by name."""
    for match in INSTALLERS.finditer(line):
        takes_value = False
        rest = re.split(r"[|;&`)#]|\s[>2]", line[match.end() :])[0]
        for token in re.findall(r"'[^']*'|\"[^\"]*\"|\S+", rest):
            word = token.strip("'\",:")
            if takes_value:
                takes_value = False
            elif word.startswith("-"):
                takes_value = bool(TAKES_VALUE.fullmatch(word))
            elif word and not LOCAL.match(word):
                yield "pip" if match["pip"] else "npm", word


def is_right(installer: str, package: str) -> bool:
    """Whether it is asked for by the project, or pinned; a project of our name never is."""
    if normal(package) == OURS:
        return False
    if installer == "npm":
        name, _, version = package.rpartition("@")
        return package in JS or bool(name and re.fullmatch(r"\d+(\.\d+)+", version))
    return normal(package) in ASKED_FOR or bool(re.search(r"==[\w.]+$", package))


def test_whatever_is_installed_by_name_is_known():
    bad, good = [], 0
    for file, text in all_texts():
        for line in text.splitlines():
            for installer, package in wanted(line):
                good += 1
                if not is_right(installer, package):
                    bad.append(f"{file}: {package}: {line.strip()}")
    assert not bad, "\n".join(bad)
    assert good >= 6, "they are not found any more"


def test_nothing_asks_an_index_for_this_project():
    """pip takes extras of ours from a folder or a wheel only."""
    bad = [
        f"{file}: {line.strip()}"
        for file, text in all_texts()
        if file != "pyproject.toml" and not file.startswith("tests/unit/test_advice")
        for line in text.splitlines()
        if re.search(rf"\b{OURS}\[", line) and "--no-index" not in line
    ]
    assert not bad, "\n".join(bad)


def test_what_javascript_runs_on_is_locked():
    lock = json.loads((ROOT / "tests/serve/js/package-lock.json").read_text())["packages"]
    assert lock.pop("")["dependencies"] == JS
    assert {f"node_modules/{name}" for name in JS} == set(lock)
    assert all(package["integrity"].startswith("sha512-") for package in lock.values())


@pytest.mark.parametrize(
    "line",
    [
        "pip install 'omni-edge[top]'",
        "python -m pip install omni_edge",
        "needs it: pip install --upgrade reqeusts",
        ".venv/bin/pip install 'numpy>=1' diskcache",
        "uv add omni-edge",
        "pipx run omni-edge",
        "npm install openai left-pad",
        "npx @openai/agents",
    ],
)
def test_bad_advice_is_noticed(line):
    found = [is_right(*one) for one in wanted(line)]
    assert found
    assert not all(found)


PARSERS = {"edge": edge.cli.parser(), "build-engine": build_engine.cli.parser()}
BEFORE = r"(?:^\s*|[:&|(\"'`]\s*|\b(?:then|sudo|inside) )(?:\S*bin/)?"
"""A command begins a line, or stands behind one of these; elsewhere it is a word of a sentence."""
CALL = re.compile(rf"{BEFORE}(edge|build-engine) +([^\n`]*)", re.MULTILINE)
MAKE = re.compile(rf"{BEFORE}make (?:(?:[A-Z_]+=|--)\S* )*([\w./-]+)", re.MULTILINE)
NO_TARGETS = {"a", "one", "room", "them"}
"""Of sentences."""


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """By name."""
    (choices,) = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(choices)


def wrong_call(program: str, rest: str) -> str | None:
    """Why `edge REST` could not be typed; None if it could, or if no command is named."""
    try:
        words = shlex.split(rest, comments=True)
    except ValueError:  # a quotation mark of the text around it
        words = rest.replace('"', " ").replace("'", " ").split()
    is_end = re.compile(r"[|&;>]+|\d?>.*").fullmatch
    words = [w.rstrip(".;)") for w in itertools.takewhile(lambda word: not is_end(word), words)]
    first = words[0].rstrip(",:") if words else ""
    known = commands_of(PARSERS[program])
    if re.fullmatch(r"[a-z][a-z-]*", first) and first not in known:
        return f"{program} {first} does not exist"
    where = known.get(first, PARSERS[program])
    options = {option for action in where._actions for option in action.option_strings}
    if any(word.endswith(",") for word in words):  # a sentence goes on
        return None
    for word in words:
        option = re.match(r"--[a-z][a-z-]*", word)
        if option and option[0] not in options:
            return f"{program} {first} has no {option[0]}"
    return None


def targets() -> set[str]:
    """Of the Makefile."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Makefile").read_text())
    found = re.findall(r"^([^\s:=#][^:=\n]*):(?!=)", text, re.MULTILINE)
    return {name.replace("$(VENV)", ".venv") for names in found for name in names.split()}


def test_every_command_that_is_advised_exists():
    bad, n_calls, made = [], 0, targets() | NO_TARGETS
    for file, text in all_texts():
        for program, rest in CALL.findall(text):
            n_calls += 1
            if why := wrong_call(program, rest):
                bad.append(f"{file}: {why}: {rest}")
        for name in MAKE.findall(text):
            if name.rstrip(".") not in made:
                bad.append(f"{file}: make {name} does not exist")
    assert not bad, "\n".join(bad)
    assert n_calls > 50, "they are not found any more"


@pytest.mark.parametrize(
    ("program", "rest"),
    [
        ("edge", "record"),
        ("edge", "ask 'What?' --rcall 30 10"),
        ("edge", "--vresion"),
        ("build-engine", "convert ./a ./b"),
        ("build-engine", "bundle ./a ./b --traget cpu # why"),
    ],
)
def test_a_command_that_does_not_exist_is_noticed(program, rest):
    assert wrong_call(program, rest)
    assert "test" in targets()
    assert ".venv/.dev" in targets()
