"""What `make` and `make install` install is one resolution, written down."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "locks"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]


def pins(extra: str) -> list[Requirement]:
    lines = (LOCKS / f"{extra}.txt").read_text().replace("\\\n", " ").splitlines()
    return [
        Requirement(line.split("--hash")[0]) for line in lines if line and not line.startswith("#")
    ]


def asked_for(extra: str) -> list[Requirement]:
    """What an extra of pyproject.toml names itself, through the extras that it includes."""
    found = []
    for text in EXTRAS[extra]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["project"]["name"]:
            found += [r for other in sorted(requirement.extras) for r in asked_for(other)]
        else:
            found.append(requirement)
    return found


def test_each_extra_has_its_lock_and_each_lock_its_extra():
    names = {path.stem for path in LOCKS.iterdir()}
    assert names == {*EXTRAS, "all", "torch", "clients", "openapi"}


@pytest.mark.parametrize("extra", [*EXTRAS, "torch"])
def test_every_pin_is_exact_and_hashed_and_that_of_the_one_resolution(extra):
    resolved = {(r.name, str(r.specifier)) for r in pins("all")}
    for pin in pins(extra):
        assert re.fullmatch(r"==[^*]+", str(pin.specifier)), pin
        assert (pin.name, str(pin.specifier).removesuffix("+cpu")) in resolved
    text = (LOCKS / f"{extra}.txt").read_text()
    for block in re.split(r"\n(?=[a-z])", text.split("# The following")[0]):
        assert "--hash=sha256:" in block, block


@pytest.mark.parametrize("name", ["clients", "openapi"])
def test_what_has_an_environment_of_its_own_is_pinned_and_hashed(name):
    for pin in pins(name):
        assert re.fullmatch(r"==[^*]+", str(pin.specifier)), pin
    for block in re.split(r"\n(?=[a-z])", (LOCKS / f"{name}.txt").read_text()):
        assert "--hash=sha256:" in block, block
    asked = (ROOT / "tests" / name / "requirements.in").read_text().splitlines()
    wanted = [Requirement(line) for line in asked if line and not line.startswith("#")]
    assert {r.name for r in wanted} <= {r.name for r in pins(name)}


@pytest.mark.parametrize("extra", EXTRAS)
def test_what_pyproject_asks_for_is_pinned_within_its_bounds(extra):
    pinned = {(canonicalize_name(r.name)): r for r in pins(extra)}
    if extra in ("quantize", "oracle"):
        pinned |= {r.name: r for r in pins("torch")}
    for wanted in asked_for(extra):
        if wanted.marker is None or wanted.marker.evaluate():
            version = str(pinned[canonicalize_name(wanted.name)].specifier)[2:]
            assert wanted.specifier.contains(version), f"{wanted} in locks/{extra}.txt: {version}"


def test_dependencies_have_an_upper_bound_too():
    for requirement in [r for extra in EXTRAS for r in asked_for(extra)]:
        assert any(bound.operator in ("<", "==") for bound in requirement.specifier), requirement


def test_the_build_system_asks_for_what_the_lock_of_tools_holds():
    tools = {r.name: str(r.specifier) for r in asked_for("tools")}
    for text in PROJECT["build-system"]["requires"]:
        assert tools[Requirement(text).name] == str(Requirement(text).specifier)


def test_this_environment_is_the_locked_one():
    for pin in pins("runtime") + pins("dev"):
        if pin.marker is None or pin.marker.evaluate():
            assert pin.specifier.contains(importlib.metadata.version(pin.name)), pin


def test_whatever_installs_packages_takes_them_from_the_lock():
    """pip resolves nothing and builds in no environment of its own making."""
    pages = [ROOT / "Makefile", *ROOT.glob("docs/*.md"), ROOT / "README.md"]
    scripts = [
        p for folder in ("scripts", "jetson", "tests") for p in ROOT.glob(f"{folder}/**/*.sh")
    ]
    bad = []
    for path in [*pages, *scripts]:
        text = re.sub(r"\\\n\s*", " ", path.read_text()).replace("$(PIP)", "pip install --no-deps")
        for line in text.splitlines():
            call = re.search(
                r"\bpip(?:_with \S+)?\"? (install|wheel|download) (.*)|pip_with .*", line
            )
            others = "openai" in line  # a client of the user's own, in an environment of theirs
            if call is None or others or re.match(r"\s*#|\w+ +:=", line):
                continue
            words = line[call.start() :]
            hashed = "--require-hashes" in words or "--no-index" in words
            ours = "--no-deps" in words and "--no-build-isolation" in words
            if not (hashed or ours or re.search(r"\w==\d", words)):
                bad.append(f"{path.relative_to(ROOT)}: {words}")
    assert not bad
