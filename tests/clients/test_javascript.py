"""Stock JavaScript clients, with the defaults that they have."""

from __future__ import annotations

import json

from conftest import run_script
from test_python import NUMBERS, PICTURE_QUESTION, QUESTION, picture


def test_openai(model):
    out = run_script(
        "openai.mjs",
        *(model, QUESTION, PICTURE_QUESTION, picture()),
    )
    *numbers, color, known = json.loads(out)
    assert set(numbers) <= NUMBERS
    assert (color, known) == ("red", model)


def test_openai_realtime(model):
    out = run_script(
        "openai_realtime.mjs",
        *(model, QUESTION),
    )
    assert out.strip() in NUMBERS


def test_openai_agents(model):
    out = run_script(
        "agents.mjs",
        *(model, QUESTION),
    )
    text, driven, seen, streamed = json.loads(out.strip().splitlines()[-1])
    assert {text, streamed} <= NUMBERS
    assert driven == "done"
    assert seen["color"] in ("red", "green", "blue", "yellow")


def test_openai_agents_realtime_keeps_its_instructions_and_tools(model, service):
    """With its defaults: sound out and semantic_vad."""
    out = run_script(
        "agents_realtime.mjs",
        *(model, f"ws://127.0.0.1:{service.port}/v1/realtime?model={model}", QUESTION),
    )
    text, seen, errors = json.loads(out.strip().splitlines()[-1])
    assert text in NUMBERS
    assert seen["instructions"].startswith("Answer in one word.")
    assert seen["tools"] == ["drive"]
    assert set(errors) <= {"session.output_modalities", "session.audio.input.transcription"}


def test_vercel_ai_sdk(model, service):
    out = run_script(
        "vercel.mjs",
        *(model, QUESTION, PICTURE_QUESTION, picture(), service.url),
    )
    found, shapes, colors, calls = json.loads(out.strip().splitlines()[-1])
    assert set(found) <= NUMBERS
    assert {shape["color"] for shape in shapes} <= {"red", "green", "blue", "yellow"}
    assert colors == ["red"] * 3
    assert calls == ["drive"] * 3
