"""What `edge devices` and `edge top` print."""

from __future__ import annotations

import json
import subprocess

import pytest
from boards import laid_out
from rich.console import Console

from edge.cli import main
from edge.senses import devices
from edge.session.health import BoardHealth
from edge.top import view

HEALTH = {
    "model": "tiny",
    "ready": True,
    "problems": [],
    "n_context_tokens": 321,
    "max_context_tokens": 8192,
    "uptime_s": 12.5,
    "mode": "typed",
    "counters": {
        **{
            f"front_{what}": n
            for n, what in enumerate(("received", "skipped", "dropped", "failed"))
        },
        "answers": 7,
        "rebases": 0,
    },
    "clients": {"connected": 3, "refused": 2, "dropped": 1},
    "answers": [
        {
            "asked_s": asked_s,
            "finish_reason": reason,
            "n_prompt_tokens": 321,
            "n_completion_tokens": 9,
            "first_token_ms": 40.0,
            "finished_ms": 160.5,
        }
        for asked_s, reason in ((2.5, "stop"), (8.5, "length"))
    ],
    "recent": [
        {
            "modality": "video",
            "n_tokens": 15,
            "n_pruned": 3,
            "captured_s": 1.0,
            "late_ms": 1.5,
            "features_ms": 2.5,
            "encode_ms": 30.25,
            "prefill_ms": 40.0,
        }
    ],
}


def test_cameras_in_the_order_of_their_numbers(tmp_path):
    names = {"video10": "USB Camera", "video2": "vi-output, imx219"}
    files = {f"sys/class/video4linux/{n}/name": f"{text}\n" for n, text in names.items()}
    found = devices.cameras(laid_out(tmp_path, files))
    assert [(device.source, device.description) for device in found] == [
        ("/dev/video2", "vi-output, imx219"),
        ("/dev/video10", "USB Camera"),
    ]


# What v4l2-ctl prints, in its two layouts. The figures are of reports on GitHub: an IMX219 on a
# Jetson (jacksonliam/mjpg-streamer, 287), a C920 (pikvm/ustreamer, 213), and a Raspberry Pi's
# camera with sizes in steps (Motion-Project/motion, 940). The range of rates is made up.
IMX219 = """\
ioctl: VIDIOC_ENUM_FMT
	Index       : 0
	Type        : Video Capture
	Pixel Format: 'RG10'
	Name        : 10-bit Bayer RGRG/GBGB
		Size: Discrete 3264x2464
			Interval: Discrete 0.048s (21.000 fps)
		Size: Discrete 1280x720
			Interval: Discrete 0.017s (60.000 fps)
		Size: Discrete 1280x720
			Interval: Discrete 0.017s (60.000 fps)
"""
C920 = """\
ioctl: VIDIOC_ENUM_FMT
	Type: Video Capture

	[0]: 'YUYV' (YUYV 4:2:2)
		Size: Discrete 640x480
			Interval: Discrete 0.033s (30.000 fps)
			Interval: Discrete 0.133s (7.500 fps)
		Size: Discrete 2304x1536
			Interval: Discrete 0.500s (2.000 fps)
	[1]: 'H264' (H.264, compressed)
		Size: Discrete 640x480
			Interval: Discrete 0.033s (30.000 fps)
"""
STEPS = """\
ioctl: VIDIOC_ENUM_FMT
	Index       : 0
	Type        : Video Capture
	Pixel Format: 'YU12'
	Name        : Planar YUV 4:2:0
		Size: Stepwise 32x32 - 2592x1944 with step 2/2
			Interval: Continuous 0.011s - 1.000s (1.000-90.000 fps)
	Index       : 5
	Type        : Video Capture
	Pixel Format: 'MJPG' (compressed)
	Name        : Motion-JPEG
		Size: Stepwise 32x32 - 2592x1944 with step 2/2
"""
NO_PICTURES = "ioctl: VIDIOC_ENUM_FMT\n\tType: Video Capture\n\n"


@pytest.mark.parametrize(
    ("listed", "formats"),
    [
        (IMX219, [("RG10", "3264x2464", (21.0,)), ("RG10", "1280x720", (60.0,))]),
        (
            C920,
            [
                ("YUYV", "640x480", (30.0, 7.5)),
                ("YUYV", "2304x1536", (2.0,)),
                ("H264", "640x480", (30.0,)),
            ],
        ),
        (
            STEPS,
            [
                ("YU12", "32x32 - 2592x1944", (90.0, 1.0)),
                ("MJPG", "32x32 - 2592x1944", ()),
            ],
        ),
        (NO_PICTURES, []),
    ],
)
def test_formats_of_a_camera(listed, formats):
    assert devices.picture_formats(listed) == [devices.PictureFormat(*f) for f in formats]


@pytest.fixture
def lister(tmp_path, monkeypatch):
    """Put a v4l2-ctl before all others: what it prints, or an error."""

    def put(text: str, code: int = 0) -> None:
        program = tmp_path / "bin/v4l2-ctl"
        program.parent.mkdir(exist_ok=True)
        to = ">&2" if code else ""
        program.write_text(f"#!/bin/sh\ncat {to} <<'END'\n{text}END\nexit {code}\n")
        program.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return put


def test_a_camera_s_formats_for_a_person(tmp_path, lister):
    root = laid_out(tmp_path / "root", {"sys/class/video4linux/video0/name": "C920\n"})
    for text, code, said in (
        (C920, 0, ["YUYV: 640x480@30, 2304x1536@2", "H264: 640x480@30"]),
        (STEPS, 0, ["YU12: 32x32 - 2592x1944@90", "MJPG: 32x32 - 2592x1944"]),
        (NO_PICTURES, 0, ["gives no pictures"]),
        ("Cannot open device /dev/video0, exiting.\n", 1, None),
        ("Cannot open it.\nTry again.\n", 1, ["Cannot open it."]),
    ):
        lister(text, code)
        (camera,) = devices.cameras(root)
        assert devices.shown(camera) == (said or [text.strip()])


def test_without_the_lister_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    root = laid_out(tmp_path / "root", {"sys/class/video4linux/video0/name": "C920\n"})
    (camera,) = devices.cameras(root)
    assert camera.formats == ()
    assert "apt install v4l-utils" in camera.note


def test_a_lister_that_hangs_is_not_waited_for(tmp_path, monkeypatch):
    waited_s = []

    def hangs(command, *, timeout, **_):
        assert command == ["v4l2-ctl", "--device", "/dev/video0", "--list-formats-ext"]
        waited_s.append(timeout)
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(devices.subprocess, "run", hangs)
    root = laid_out(tmp_path, {"sys/class/video4linux/video0/name": "C920\n"})
    (camera,) = devices.cameras(root)
    assert devices.shown(camera) == ["v4l2-ctl had no answer after 5 s"]
    assert waited_s == [5.0]


def test_the_command_lists_them_as_json(capsys):
    assert main(["devices", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out.splitlines()[-1]), list)


def test_a_view_has_what_a_person_looks_for():
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(view(HEALTH, BoardHealth(97.0, 99.0, True, 0.5, 17.3, 15.0)))
        text = console.export_text()
    for said in ("321 of 8192 tokens", "memory 50%, 97 of 99 °C, 17.3 W", "clocks are lowered"):
        assert said in text
    assert "answers 7" in text
    row = next(line for line in text.splitlines() if "video" in line)
    assert [word for word in row.split() if word[0].isdigit()] == [
        "1.5",
        "2.5",
        "30.2",
        "40.0",
        "15",
    ]
    assert "3 connected, 2 refused, 1 dropped" in text
    asked = [line.replace("│", " ").split() for line in text.splitlines() if "s ago" in line]
    assert asked[0] == ["4", "s", "ago", "length", "321", "9", "40.0", "160.5"], "newest first"
    assert asked[1][:4] == ["10", "s", "ago", "stop"]
    row = next(line for line in text.splitlines() if "front" in line)
    assert [word for word in row.split() if word.isdigit()] == ["0", "1", "2", "3"]


def test_nobody_serves(tmp_path, capsys):
    assert main(["top", "--once", "--socket", str(tmp_path / "none")]) == 73
    assert "is not there; start `edge run`" in capsys.readouterr().err
