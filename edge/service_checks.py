"""What `edge doctor` says of the installed service: its unit, settings, sources and users."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from edge.client import Client
from edge.config import Config, load_config
from edge.errors import AccessError, ConfigurationError, EdgeError
from edge.senses.address import without_secrets
from edge.senses.camera import GSTREAMER, is_on_network
from edge.senses.microphone import DEVICE
from jetson.doctor import Check

UNIT = "edge.service"
SETTINGS = Path("/etc/edge/edge.toml")
INSTALLED = Path("/var/lib/edge/bundle")
"""The bundle of the service; a bundle elsewhere is looked at without it."""
_PROPERTIES = ("LoadState", "ActiveState", "Result", "ExecMainStatus", "StatusText", "NRestarts")
_LOG = "journalctl -u edge -n 20"
_ASK_S = 5.0


def unit_state() -> dict[str, str]:
    """What systemd says of the unit; empty: there is none, or no systemd."""
    if not shutil.which("systemctl") or not Path("/run/systemd/system").exists():
        return {}
    shown = subprocess.run(
        ["systemctl", "show", UNIT, f"--property={','.join(_PROPERTIES)}"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    state = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    return state if state.get("LoadState") == "loaded" else {}


def last_start() -> str:
    """What the journal has of the unit's last start since the machine's; empty: nothing for us."""
    if not shutil.which("journalctl"):
        return ""
    words = f"journalctl --unit={UNIT} --boot --grep=event=ready --lines=1 --output=cat --quiet"
    return subprocess.run(words.split(), capture_output=True, text=True, check=False).stdout


def examine_service(
    state: Mapping[str, str], settings: Path = SETTINGS, start: str = ""
) -> Iterator[Check]:
    """Look at everything.

    Args:
        state: of its unit; empty yields nothing.
        settings: its file.
        start: what it logged when it was ready.
    """
    if not state:
        return
    yield _unit(state)
    stages = re.findall(r"(\w+)_s=(\d+\.\d+)", start)
    if stages:
        (_, total), *parts = stages
        found = ", ".join(f"{name} {float(seconds):.1f}" for name, seconds in parts)
        yield Check("last start", "ok", f"{float(total):.1f} s: {found}")
    try:
        config = load_config(settings)
    except ConfigurationError as error:
        if isinstance(error.__cause__, PermissionError):
            closed = f"{settings} is closed to this user"
            yield Check("settings", "warning", closed, "sudo edge doctor")
            return
        remedy = f"{error.remedy}; then sudo systemctl restart edge"
        yield Check("settings", "failure", f"{error.thing} {error.problem}", remedy)
        return
    yield Check("settings", "ok", str(settings))
    yield from _sources(config)
    if state["ActiveState"] == "active":
        yield _access(Path(config.socket.path))


def _unit(state: Mapping[str, str]) -> Check:
    active, status = state["ActiveState"], state["StatusText"]
    if active == "failed":
        found = f"failed: {state['Result']}, exit code {state['ExecMainStatus']}"
        return Check("service", "failure", found, f"{_LOG}; then sudo systemctl start edge")
    if active != "active":
        found = f"{active}{f': {status}' if status else ''}"
        return Check("service", "warning", found, "sudo systemctl start edge; edge doctor again")
    if state["NRestarts"] != "0":
        found = f"active, after {state['NRestarts']} restarts by systemd: {status}"
        return Check("service", "warning", found, "journalctl -u edge -p warning")
    return Check("service", "ok", f"active: {status}")


def _sources(config: Config) -> Iterator[Check]:
    if not config.camera and not config.microphone:
        yield Check(
            "sources", "warning", "no camera and no microphone", f"edge devices; then {SETTINGS}"
        )
    for camera in config.camera:
        yield _camera(f"camera {camera.name}", camera.source)
    for microphone in config.microphone:
        name = f"microphone {microphone.name}"
        if microphone.source.startswith(DEVICE):
            has_sound = Path("/dev/snd").is_dir()
            yield (
                Check(name, "ok", microphone.source)
                if has_sound
                else Check(name, "failure", "there is no sound card", "edge devices")
            )
        else:
            yield _file(name, microphone.source)


def _camera(name: str, source: str) -> Check:
    if GSTREAMER in source:
        return Check(name, "ok", "a GStreamer pipeline, which is not tried here")
    if is_on_network(source):
        remedy = f"a unit of its own hands it on: edge-ingest@{name.split()[-1]}, docs/jetson.md"
        found = f"{without_secrets(source)}: the service has no network"
        return Check(name, "failure", found, remedy)
    if urlsplit(source).scheme == "unix":
        return _ingest(name, urlsplit(source).path)
    return _file(name, source.partition("?")[0])


def _file(name: str, path: str) -> Check:
    if not os.path.exists(path):
        return Check(name, "failure", f"{path} is not there", "edge devices")
    if not os.access(path, os.R_OK):
        return Check(name, "warning", f"{path} is closed to this user", "sudo edge doctor")
    return Check(name, "ok", path)


def _ingest(name: str, path: str) -> Check:
    """Only connected to: what it hands on is for the service."""
    unit = f"edge-ingest@{Path(path).stem}"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_ASK_S)
        try:
            sock.connect(path)
        except PermissionError:
            return Check(name, "warning", f"{path} is closed to this user", "sudo edge doctor")
        except OSError as error:
            remedy = f"sudo systemctl enable --now {unit}; journalctl -u {unit}"
            return Check(name, "failure", f"{path}: {error.strerror}", remedy)
    return Check(name, "ok", f"{unit} hands it on")


def _access(path: Path) -> Check:
    user = getpass.getuser()
    try:
        Client(path, _ASK_S).health()
    except AccessError as error:
        return Check("access", "warning", f"{user}: {error.problem}", error.remedy)
    except EdgeError as error:
        remedy = f"sudo usermod -aG edge {user}, and log in again"
        return Check("access", "warning", f"{user}: {error.problem}", remedy)
    return Check("access", "ok", f"{user} may use {path}")
