"""Recordings of other versions are refused as what they are."""

from __future__ import annotations

import json

import pytest
from mcap.writer import Writer

from edge.errors import MediaError
from edge.session.record import FORMAT, read


def refused(path, topic, content) -> str:
    """What is said of a file whose first message is this."""
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start(library="test")
        schema = writer.register_schema("any", "jsonschema", b"{}")
        channel = writer.register_channel(f"/{topic}", "json", schema)
        data = json.dumps(content).encode()
        writer.add_message(channel, log_time=0, publish_time=0, data=data)
        writer.finish()
    with pytest.raises(MediaError) as caught:
        read(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("found", "who"), [(1, "an older"), (FORMAT - 1, "an older"), (FORMAT + 1, "a newer")]
)
def test_another_versions_recording_is_named(tmp_path, found, who):
    """With nothing in it that this version would know."""
    path = tmp_path / "session.mcap"
    assert refused(path, "session", {"format": found, "what": 1}) == (
        f"{path}: is a recorded session of format {found}, and this version reads {FORMAT}; "
        f"replay it with {who} Omni Edge, or record it again with `edge run --record`"
    )


@pytest.mark.parametrize("about", [{}, [1], {"format": str(FORMAT)}, {"format": True}])
def test_what_is_no_session_is_no_session(tmp_path, about):
    said = refused(tmp_path / "session.mcap", "session", about)
    assert "is not a recorded session; record one with" in said


def test_other_peoples_recordings_have_no_format_of_ours(tmp_path):
    said = refused(tmp_path / "session.mcap", "camera", {"format": FORMAT})
    assert "is not a recorded session; record one with" in said
