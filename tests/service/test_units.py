"""The units as systemd reads them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edge.errors import ConfigurationError, DeviceError
from jetson import before_start

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
        text = re.sub("/opt/edge/current/bin/(edge|python)", "/bin/true", text)
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
        "After=nv-load-display-modules.service",
        "ExecStartPre=-+/opt/edge/current/bin/python -I -m jetson.before_start",
    ],
)
def test_promises(line):
    assert line in (UNITS / "edge.service").read_text().splitlines()


@pytest.mark.parametrize("name", ["edge.service", "edge-ingest@.service"])
def test_python_takes_no_packages_that_the_service_can_write(name):
    lines = (UNITS / name).read_text().splitlines()
    environment = " ".join(line for line in lines if line.startswith("Environment="))
    assert "PYTHONNOUSERSITE=1" in environment
    assert "InaccessiblePaths=-/run/dbus" in lines
    assert "DynamicUser=yes" not in lines, "its folder in /run is closed to all others"
    states = [line for line in lines if line.startswith("StateDirectory=")]
    assert {*states} <= {"StateDirectory=edge/recorded"}, "bundles lie in the folder above"


def test_a_missing_gpu_is_tried_again_and_a_wrong_setting_is_not():
    service = (UNITS / "edge.service").read_text()
    (prevented,) = re.findall(r"^RestartPreventExitStatus=(.*)", service, re.MULTILINE)
    assert str(ConfigurationError.exit_code) in prevented.split()
    assert str(DeviceError.exit_code) not in prevented.split()
    (seconds,) = re.findall(r"^StartLimitIntervalSec=(\d+)", service, re.MULTILINE)
    (starts,) = re.findall(r"^StartLimitBurst=(\d+)", service, re.MULTILINE)
    assert int(seconds) / int(starts) < before_start.GPU_TIMEOUT_S  # for ever
