"""What a message of a request brings along, and which field is named where it cannot be used."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from serve.test_fields import USER, parsed, refused
from serve.test_realtime import png

from edge.errors import MediaError, ProtocolError
from edge.senses import sent
from edge.serve.messages import arguments_of
from edge.session.turn import Message
from edge.types import Picture, Sound

PNG = png()


def url(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="module")
def wav():
    """0.2 s of a WAV file, as Base64."""
    data = np.full(3200, 8192, "<i2").tobytes()
    head = b"WAVEfmt \x10\0\0\0\x01\0\x01\0" + (16_000).to_bytes(4, "little")
    head += (32_000).to_bytes(4, "little") + b"\x02\0\x10\0data" + len(data).to_bytes(4, "little")
    whole = b"RIFF" + (len(head) + len(data)).to_bytes(4, "little") + head + data
    return base64.b64encode(whole).decode()


def media_of(*parts):
    return parsed(messages=[{"role": "user", "content": [*parts]}]).question.messages[0].media


def test_every_form_of_a_picture_is_one():
    text = url(PNG)
    found = media_of(
        {"type": "image_url", "image_url": text},
        {"type": "image_url", "image_url": {"url": text, "detail": "low"}},
        {"type": "input_image", "image_url": text},
        {"type": "input_image", "image_url": {"url": text}},
    )
    assert {type(one) for one in found} == {Picture}
    assert len(set(found)) == 1
    assert len(found) == 4
    assert (found[0].width, found[0].height) == (40, 30)


def test_every_form_of_a_sound_is_one(wav):
    as_url = f"data:audio/wav;base64,{wav}"
    found = media_of(
        {"type": "input_audio", "input_audio": {"data": wav, "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": as_url}},
        {"type": "input_audio", "input_audio": {"url": as_url}},
        {"type": "audio_url", "audio_url": as_url},
        {"type": "audio_url", "audio_url": {"url": as_url}},
    )
    assert {type(one) for one in found} == {Sound}
    assert len(found) == 5
    assert len(set(found)) == 1
    assert len(found[0].samples) == 3200 * 4


BAD = "http://a/b"


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("image_url", "picture"),
        ("audio_url", "sound"),
        ("video_url", "film"),
    ],
)
def test_what_is_to_be_sent_is_named(kind, what):
    found = refused(messages=[{"role": "user", "content": [{"type": kind, kind: BAD}]}])
    assert str(found).endswith(f"send the {what} itself")
    part = {"type": "input_audio", "input_audio": {"data": "data:x"}}
    found = refused(messages=[{"role": "user", "content": [part]}])
    assert str(found).endswith("send the file itself")


@pytest.mark.parametrize(
    ("part", "thing"),
    [
        ({"type": "image_url", "image_url": BAD}, "image_url"),
        ({"type": "image_url", "image_url": {"url": BAD}}, "image_url.url"),
        ({"type": "input_image", "image_url": BAD}, "image_url"),
        ({"type": "input_image"}, "image_url"),
        ({"type": "audio_url", "audio_url": BAD}, "audio_url"),
        ({"type": "audio_url", "audio_url": {"url": BAD}}, "audio_url.url"),
        ({"type": "video_url", "video_url": BAD}, "video_url"),
        ({"type": "video_url", "video_url": {"url": BAD}}, "video_url.url"),
        ({"type": "input_video"}, "input_video"),
        ({"type": "input_video", "video_url": BAD}, "input_video"),
        ({"type": "input_video", "input_video": {}}, "input_video.data"),
        ({"type": "input_video", "input_video": {"data": "data:x"}}, "input_video.data"),
        ({"type": "input_audio", "input_audio": {}}, "input_audio.data"),
        ({"type": "input_audio", "input_audio": {"url": BAD}}, "input_audio.url"),
        ({"type": "input_audio", "input_audio": {"data": "?"}}, "input_audio.data"),
        ({"type": "input_audio", "input_audio": {"data": "data:x"}}, "input_audio.data"),
    ],
)
def test_the_field_that_cannot_be_used_is_named(part, thing):
    text = {"type": "text", "text": "Look."}
    found = refused(messages=[USER, {"role": "user", "content": [text, part]}])
    assert found.thing == f"messages[1].content[1].{thing}"
    if BAD in str(part):
        assert "the service fetches nothing" in str(found)


@pytest.mark.parametrize("role", ["system", "assistant", "tool"])
def test_only_the_user_shows_something(role):
    part = {"type": "image_url", "image_url": url(PNG)}
    found = refused(messages=[{"role": role, "content": [part]}])
    assert found.thing == "messages[0].content"
    assert str(found).endswith(f"holds pictures or sounds of the {role}; let the user send them")


@pytest.mark.parametrize(
    ("message", "thing"),
    [
        ({"role": "user"}, "messages[1].content"),
        ({"role": "tool", "content": None}, "messages[1].content"),
        (
            {"role": "assistant", "tool_calls": [
                {"function": {"name": "a"}}, {"function": {"name": "b", "arguments": "["}}]},
            "messages[1].tool_calls[1].function.arguments",
        ),
        (
            {"role": "assistant", "function_call": {"name": "a", "arguments": "1"}},
            "messages[1].function_call.arguments",
        ),
    ],
)  # fmt: skip
def test_what_a_message_lacks_is_named(message, thing):
    assert refused(messages=[USER, message]).thing == thing


@pytest.mark.parametrize(
    ("message", "content", "reasoning"),
    [
        ({"content": "Hi", "refusal": "No"}, "Hi", ""),
        ({"refusal": "No"}, "No", ""),
        ({}, "", ""),
        ({"content": [{"type": "refusal", "refusal": "No"}]}, "No", ""),
        ({"content": ["a", {"type": "output_text", "text": "b"}]}, "a\nb", ""),
        ({"content": [{"type": "thinking", "thinking": "x"}, {"type": "text", "text": "b"}]},
         "b", ""),
        ({"content": "Hi", "reasoning_content": "a", "reasoning": "b"}, "Hi", "a"),
        ({"content": "Hi", "reasoning": "b"}, "Hi", "b"),
    ],
)  # fmt: skip
def test_what_an_assistant_s_message_says(message, content, reasoning):
    found = parsed(messages=[USER, {"role": "assistant", **message}, USER]).question.messages
    assert found[1] == Message("assistant", content, reasoning=reasoning)


def test_a_user_does_not_think_and_somebody_asks():
    found = parsed(messages=[{"role": "user", "content": "Hi", "reasoning": "x"}])
    assert found.question.messages == (Message("user", "Hi"),)
    found = parsed(messages=[{"role": "system", "content": "Be brief."}])
    assert found.question.messages == (Message("system", "Be brief."), Message("user", ""))


def test_all_pictures_of_a_request_are_bounded_together(monkeypatch):
    part = {"type": "image_url", "image_url": url(PNG)}
    n_bytes = 40 * 30 * 3
    asked = [{"role": "user", "content": [part]}, {"role": "user", "content": [part]}]
    monkeypatch.setattr(sent, "MAX_MEDIA_BYTES", 2 * n_bytes)
    assert len(parsed(messages=asked).question.messages) == 2
    monkeypatch.setattr(sent, "MAX_MEDIA_BYTES", 2 * n_bytes - 1)
    with pytest.raises(MediaError, match=r"room for 1199 beside others; send fewer"):
        parsed(messages=asked)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (None, {}),
        ("", {}),
        ({"a": 1}, {"a": 1}),
        ('{"a": 1}', {"a": 1}),
        ('{"a": 1', {"a": 1}),  # of a call that was cut
        ("[1]", "has arguments '[1]'"),
        ('{"a": "', "has arguments"),
        ("x" * 50, f"has arguments '{'x' * 40}'; send a JSON object"),
    ],
)
def test_arguments_of_a_call(arguments, found):
    if isinstance(found, dict):
        assert arguments_of(arguments, "here") == found
        return
    with pytest.raises(ProtocolError) as refusal:
        arguments_of(arguments, "here")
    assert refusal.value.thing == "here"
    assert found in str(refusal.value)
