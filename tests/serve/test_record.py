"""A session is recorded as it is served, and led to the same events by another process."""

from __future__ import annotations

import json
import shutil

import pytest
from mcap.reader import make_reader
from test_end_to_end import edge, run

__all__ = ["run"]
pytest_plugins = ["media"]

SETTINGS = """
[perception]
evs_tokens_per_s = 16
listen = "windows"
[context]
max_tokens = 400
keep_tokens = 150
[answer]
temperature = 0.8
max_tokens = 12
"""


@pytest.fixture
def recorded(run, clips, tmp_path):
    """A film of a few seconds, questions in it, and one whose client goes away."""
    settings, path = tmp_path / "edge.toml", tmp_path / "session.mcap"
    settings.write_text(SETTINGS)
    clip = clips / "carphone_pristine.mp4"
    service, socket = run("--video", clip, "--config", settings, "--record", path)
    for n, question in enumerate(("What is this?", "And now?", "Still there?")):
        service.wait_for("segment=video", n + 1)
        assert edge("ask", question, "--socket", socket).returncode == 0
    service.wait_for("event=ended")
    assert service.stop() == 0
    return path


def test_a_replay_leads_to_the_same_events(recorded, bundle, tmp_path):
    elsewhere = tmp_path / "copied.mcap"
    shutil.copyfile(recorded, elsewhere)
    result = edge("replay", bundle("base"), elsewhere, "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["same"]
    assert report["events"] > 6
    with recorded.open("rb") as file:
        summary = make_reader(file).get_summary()
    counts = {
        channel.topic: summary.statistics.channel_message_counts.get(number, 0)
        for number, channel in summary.channels.items()
    }
    assert counts["/question"] == 3
    assert counts["/event"] == report["events"]
    assert "foxglove.RawImage" in {schema.name for schema in summary.schemas.values()}


def test_two_cameras_and_a_microphone_replay_too(run, clips, speech, bundle, tmp_path):
    settings, path = tmp_path / "edge.toml", tmp_path / "session.mcap"
    film, sound = clips / "carphone_pristine.mp4", speech / "Front_Center.wav"
    senses = "".join(
        f'[[{kind}]]\nname = "{name}"\nsource = "{source}"\n'
        for kind, name, source in (
            *(("camera", "front", film), ("camera", "arm", film)),
            *(("microphone", "mast", sound),),
        )
    )
    settings.write_text(f'{senses}[perception]\nlisten = "utterances"\n[turns]\nmode = "open"\n')
    service, _ = run("--config", settings, "--record", path)
    for name in ("front", "arm", "mast"):
        service.wait_for(f"sense={name} event=ended")
    assert service.stop() == 0
    result = edge("replay", bundle("base"), path, "--json")
    assert result.returncode == 0, result.stderr
    events = json.loads(result.stdout)["events"]
    with path.open("rb") as file:
        kinds, sources = [], set()
        for _, channel, message in make_reader(file).iter_messages():
            content = json.loads(message.data)
            if channel.topic == "/event":
                kinds.append(content["type"])
                evidence = content.get("timeline", {}).get("evidence", [])
                sources |= {found["source"] for found in evidence}
            if channel.topic == "/session":
                assert content["cameras"] == ["front", "arm"]
    assert len(kinds) == events
    # It was asked aloud, and answered.
    assert {"SpeechStarted", "Spoken", "Done"} <= set(kinds)
    assert "mast" in sources
    assert sources <= {"front", "arm", "mast"}


def test_another_model_leads_elsewhere_and_the_replay_says_where(recorded, bundle):
    result = edge("replay", bundle("wide"), recorded)
    assert result.returncode == 65
    assert "step" in result.stderr
    assert "recorded is" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_recording_that_was_cut_is_replayed_to_there(recorded, bundle, tmp_path, share):
    short = tmp_path / "short.mcap"
    data = recorded.read_bytes()
    short.write_bytes(data[: int(share * len(data))])
    result = edge("replay", bundle("base"), short, "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["same"]
    assert report["steps"] > 10
    assert report["cut"].endswith(f"after {report['steps']} steps")
    assert f"{short}: {report['cut']}; all before it was replayed" in result.stderr


def test_what_is_no_recording_is_refused(recorded, bundle, tmp_path):
    for path in (tmp_path / "absent.mcap", recorded.with_name("edge.toml")):
        result = edge("replay", bundle("base"), path)
        assert result.returncode == 65, result.stdout
        assert str(path) in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_of_a_folder_all_are_replayed_but_what_cannot_be_read(recorded, bundle, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    names = [f"edge-00000{n}-2026-11-30T12-00-00Z.mcap" for n in range(3)]
    for name in names:
        shutil.copyfile(recorded, folder / name)
    (folder / names[1]).write_bytes(b"no recording")
    result = edge("replay", bundle("base"), folder, "--json")
    assert result.returncode == 65, result.stdout
    files = json.loads(result.stdout)["files"]
    assert [one["file"] for one in files] == [str(folder / name) for name in names]
    assert [one.get("same") for one in files] == [True, None, True]
    assert names[1] in files[1]["error"]
    told, summary = result.stderr.splitlines()
    assert names[1] in told
    assert f"{folder}: holds 1 of 3 files that cannot be replayed" in summary
