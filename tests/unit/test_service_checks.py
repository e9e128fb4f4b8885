"""What `edge doctor` says of an installed service."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.cli import main
from edge.service_checks import examine_service

ACTIVE = {"ActiveState": "active", "Result": "success", "ExecMainStatus": "0"}
ACTIVE |= {"StatusText": "context 3% full", "NRestarts": "0"}
NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a path that a socket may have."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def checks(folder: Path, settings: str = "", **state: str) -> dict[str, tuple[str, str, str]]:
    path = folder / "edge.toml"
    path.write_text(f'[socket]\npath = "{folder}/edge.sock"\n{settings}')
    found = list(examine_service(ACTIVE | state, path))
    return {check.name: (check.verdict, check.found, check.remedy) for check in found}


def test_without_a_unit_nothing_is_said(folder):
    assert list(examine_service({}, folder / "none")) == []


@pytest.mark.parametrize(
    ("state", "verdict", "found"),
    [
        ({}, "ok", "active: context 3% full"),
        ({"NRestarts": "3"}, "warning", "after 3 restarts"),
        ({"ActiveState": "activating", "StatusText": "starting: x"}, "warning", "activating: st"),
        ({"ActiveState": "inactive", "StatusText": ""}, "warning", "inactive"),
        (
            {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "78"},
            "failure",
            "failed: exit-code, exit code 78",
        ),
    ],
)
def test_its_unit(folder, state, verdict, found):
    said = checks(folder, **state)["service"]
    assert said[0] == verdict
    assert found in said[1]
    assert bool(said[2]) == (verdict != "ok")


def test_its_last_start_by_stages(folder):
    line = "event=ready socket=/run/edge/edge.sock model=a_b startup_s=21.336 imports_s=1.250"
    settings = folder / "none"
    found = {c.name: c.found for c in examine_service(ACTIVE, settings, f"{line} bundle_s=20.086")}
    assert found["last start"] == "21.3 s: imports 1.2, bundle 20.1"
    assert "last start" not in {c.name for c in examine_service(ACTIVE, settings)}


def test_wrong_settings_are_listed(folder):
    said = checks(folder, "[perception]\nfps = -1\nvolume = 3\n")
    assert said["settings"][0] == "failure"
    assert "fps" in said["settings"][1]
    assert "volume" in said["settings"][1]
    assert [*said] == ["service", "settings"]


def test_settings_that_this_user_may_not_read_are_no_failure(folder, capsys):
    path = folder / "edge.toml"
    path.touch(mode=0o000)
    uid = os.geteuid()
    try:
        if not uid:  # root may read anything
            os.seteuid(NOBODY)
        service, settings = examine_service(ACTIVE, path)
        assert main(["doctor", "--config", str(path)]) == 78
    finally:
        os.seteuid(uid)
    assert service.verdict == "ok"
    assert (settings.name, settings.verdict) == ("settings", "warning")
    assert settings.found == f"{path} is closed to this user"
    assert settings.remedy == "sudo edge doctor"
    (said,) = capsys.readouterr().err.splitlines()
    assert str(path) in said
    assert "Permission denied" in said


def test_sources(folder):
    with socket.socket(socket.AF_UNIX) as ingest:
        ingest.bind(f"{folder}/door.sock")
        ingest.listen()
        (folder / "film.mp4").touch()
        said = checks(
            folder,
            f"""
            [[camera]]
            name = "door"
            source = "unix:{folder}/door.sock"
            [[camera]]
            name = "gate"
            source = "unix:{folder}/gate.sock"
            [[camera]]
            name = "yard"
            source = "rtsp://robot:sesame@10.0.0.2/x"
            [[camera]]
            name = "front"
            source = "{folder}/video9?framerate=30"
            [[camera]]
            name = "csi"
            source = "nvarguscamerasrc ! nvvidconv"
            [[microphone]]
            name = "film"
            source = "{folder}/film.mp4"
            """,
        )
    assert said["camera door"] == ("ok", "edge-ingest@door hands it on", "")
    assert said["camera gate"][0] == "failure"
    assert "edge-ingest@gate" in said["camera gate"][2]
    assert said["camera yard"][0] == "failure"
    assert "no network" in said["camera yard"][1]
    assert "sesame" not in str(said)
    assert said["camera front"][:2] == ("failure", f"{folder}/video9 is not there")
    assert said["camera csi"][0] == "ok"
    assert said["microphone film"] == ("ok", f"{folder}/film.mp4", "")
    assert "sources" not in said


def test_a_service_without_senses_and_who_may_not_use_it(folder):
    said = checks(folder)
    assert said["sources"][0] == "warning"
    assert said["access"][0] == "warning"
    assert "access" not in checks(folder, ActiveState="inactive")
