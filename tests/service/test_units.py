"""The units as systemd reads them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "jetson"
MAX_EXPOSURE_TENTHS = 10
NAMES = ("edge.service", "edge.socket", "edge-ingest@.service")
pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None and os.environ.get("CI") != "true",
    reason="needs systemd-analyze: install systemd",
)


def analyze(*words: object) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *(str(word) for word in words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def units(tmp_path):
    """Copies whose program exists here."""
    for name in NAMES:
        text = (UNITS / name).read_text()
        for program in ("/opt/edge/current/bin/edge", "/usr/bin/ffmpeg"):
            text = text.replace(program, "/bin/true")
        (tmp_path / name).write_text(text)
    return tmp_path


def test_nothing_is_wrong_with_them(units):
    found = analyze("verify", *(units / name.replace("@", "@door") for name in NAMES))
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_a_misspelt_key_would_be_found(units):
    service = units / "edge.service"
    service.write_text(service.read_text().replace("WatchdogSec", "WatchdogSeconds"))
    assert "Unknown key" in analyze("verify", service).stderr


@pytest.mark.parametrize("name", ["edge.service", "edge-ingest@.service"])
def test_little_is_exposed(units, name):
    words = ("--offline=true", f"--threshold={MAX_EXPOSURE_TENTHS}", units / name)
    found = analyze("security", *words)
    print(found.stdout.splitlines()[-1])
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    "line",
    [
        "Type=notify",
        "PrivateNetwork=yes",
        "RestrictAddressFamilies=AF_UNIX",
        "Environment=ORT_DISABLE_TELEMETRY=1",
        "RestartPreventExitStatus=78",
        "RuntimeDirectoryPreserve=yes",
        "DevicePolicy=closed",
    ],
)
def test_promises(line):
    assert line in (UNITS / "edge.service").read_text().splitlines()
