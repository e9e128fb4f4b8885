"""What `edge devices` and `edge top` print."""

from __future__ import annotations

import json

from boards import laid_out
from rich.console import Console

from edge.cli import main
from edge.senses import devices
from edge.session.health import BoardHealth
from edge.top import view

HEALTH = {
    "model": "tiny",
    "ready": True,
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
