"""The container's files against each other, the unit and the command line."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from edge.cli import parser

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "jetson/container"
SERVICE = (ROOT / "jetson/edge.service").read_text()
INSTRUCTIONS = {"ARG", "FROM", "RUN", "COPY", "ENV", "WORKDIR", "USER", "ENTRYPOINT", "CMD"}


@pytest.fixture
def steps():
    """Instruction and its text, lines joined."""
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line]


@pytest.fixture
def service():
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]["edge"]


def texts(steps, name):
    return [text for instruction, text in steps if instruction == name]


def test_each_instruction_each_stage_and_each_argument_is_known(steps):
    assert {name for name, _ in steps} == INSTRUCTIONS
    stages = re.findall(r" AS (\w+)", " ".join(texts(steps, "FROM")))
    assert set(re.findall(r"--from=(\w+)", " ".join(texts(steps, "COPY")))) <= {*stages}
    declared = {text.partition("=")[0] for text in texts(steps, "ARG")}
    used = set(re.findall(r"\$\{(\w+)\}", " ".join(text for _, text in steps)))
    assert used == declared


def test_packages_are_installed_without_what_they_recommend(steps):
    for text in texts(steps, "RUN"):
        assert ("apt-get install" in text) == ("--no-install-recommends" in text)


def test_it_is_built_by_the_installer(steps):
    (run,) = [text for text in texts(steps, "RUN") if "DESTDIR" in text]
    script = run.split()[-1].removeprefix("/src/")
    assert (ROOT / script).is_file()
    extras = re.findall(r"EXTRAS=([\w,]+)", (FOLDER / "Dockerfile").read_text())
    assert len(extras) == 2
    for name in ",".join(extras).split(","):
        assert (ROOT / f"locks/{name}.txt").is_file()


def test_it_runs_as_the_unit_does(steps):
    """The same command, as a user, with the same environment."""
    (command,) = re.findall(r"^ExecStart=\S+/edge (.*)", SERVICE, re.MULTILINE)
    (words,) = texts(steps, "CMD")
    assert yaml.safe_load(words) == shlex.split(command)
    assert parser().parse_args(yaml.safe_load(words)).bundle == Path("/var/lib/edge/bundle")
    assert texts(steps, "USER") == ["edge"]
    unit = re.findall(r"^Environment=(.*)", SERVICE, re.MULTILINE)
    assert {*" ".join(unit).split()} <= {*texts(steps, "ENV")[0].split()}


def test_compose_gives_what_the_image_asks_for(service, steps):
    assert (FOLDER / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert {*service["build"]["args"]} == {text.partition("=")[0] for text in texts(steps, "ARG")}
    targets = [volume.split(":")[1] for volume in service["volumes"]]
    (words,) = texts(steps, "CMD")
    assert {word for word in yaml.safe_load(words) if word.startswith("/")} <= {*targets}
    health = service["healthcheck"]["test"]
    assert parser().parse_args(health[2:]).socket == "/run/edge/edge.sock"


def test_compose_keeps_it_as_closed_as_the_unit(service):
    assert service["network_mode"] == "none"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    (tasks,) = re.findall(r"^TasksMax=(\d+)", SERVICE, re.MULTILINE)
    assert service["pids_limit"] == int(tasks)
    assert all(
        volume.endswith(":ro") for volume in service["volumes"] if not volume.startswith("/run")
    )
