"""What hands a network camera on: to whom, from which packet on, and what it says it was given."""

from __future__ import annotations

import io
import socket
from contextlib import contextmanager
from types import SimpleNamespace

import av
import numpy as np
import pytest
from make_media import write_sound, write_video, write_wav

from edge.errors import ConfigurationError
from edge.senses import ingest
from edge.senses.ingest import CREDENTIAL, given_address, hand_on

ADDRESS = "rtsp://robot:sesame@10.0.0.1/live"
N_PICTURES = 36


@pytest.mark.parametrize("address", [ADDRESS, "rtsps://door/1", "udp://0.0.0.0:5000"])
def test_the_address_is_what_systemd_shows_to_this_service(tmp_path, address):
    (tmp_path / CREDENTIAL).write_text(f"  {address}\n")
    assert given_address({"CREDENTIALS_DIRECTORY": str(tmp_path)}) == address
    with pytest.raises(ConfigurationError, match=r"is not set; .* LoadCredential=address:"):
        given_address({})


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (b"/dev/video0", "is '/dev/video0'; one line in /etc/edge/ingest/NAME"),
        (b"unix:/run/other.sock", "is 'unix:"),
        (b"http://robot:sesame@10.0.0.1/live", r"is 'http://\*\*\*@10"),
        (b"\xff", "is '\ufffd'"),
        (b" " * 4096 + ADDRESS.encode(), "is ''"),
        (b"", "is ''"),
    ],
)
def test_what_is_handed_on_is_a_network_camera(tmp_path, address, said):
    (tmp_path / CREDENTIAL).write_bytes(address)
    with pytest.raises(ConfigurationError, match=said):
        given_address({"CREDENTIALS_DIRECTORY": str(tmp_path)})


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """A camera's packets, as a file."""
    first = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    pictures = [np.roll(first, n // 12, axis=1) for n in range(N_PICTURES)]
    path = tmp_path_factory.mktemp("stream") / "a.ts"
    return write_video(path, pictures, range(0, 40 * N_PICTURES, 40), "yuv420p", "mpeg4")


def packets(file):
    """The pictures' packets, undecoded."""
    with av.open(file) as container:
        assert container.format.name == "mpegts"
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def beginnings(path):
    """Which of them need no other."""
    with av.open(str(path)) as container:
        found = [n for n, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]
    assert found[0] == 0
    assert found[1] < found[2] - 3
    return found


@pytest.fixture
def camera(monkeypatch, stream, tmp_path):
    """One that gives the stream again each time that it is opened, `n_openings` times.

    Before the packet that bears its number, over all of them, something is `done`.
    """
    found = SimpleNamespace(done={}, n_openings=1, path=stream, pauses=[], n_packets=0)
    found.is_set = lambda: len(found.pauses) >= found.n_openings
    found.wait = found.pauses.append

    @contextmanager
    def opened(address):
        assert address == ADDRESS
        with av.open(str(found.path)) as container:

            def demux(chosen):
                for packet in container.demux(chosen):
                    if packet.size:
                        step = found.done.get(found.n_packets, lambda: None)
                        found.n_packets += 1
                        if isinstance(step, Exception):
                            raise step
                        step()
                    yield packet

            yield SimpleNamespace(streams=container.streams, demux=demux)

    monkeypatch.setattr(ingest, "open_stream", opened)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "door.sock"))
        listener.listen()
        found.hand_on = lambda: hand_on(ADDRESS, "door", listener, found)
        found.readers = []

        def connect():
            reader = socket.socket(socket.AF_UNIX)
            reader.connect(str(tmp_path / "door.sock"))
            reader.settimeout(5.0)  # where it should have been closed
            found.readers.append(reader)

        found.connect = connect
        yield found
        for reader in found.readers:
            reader.close()


def taken(reader):
    """All packets of what a reader was given until its end."""
    data = b"".join(iter(lambda: reader.recv(1 << 16), b""))
    return packets(io.BytesIO(data))


def test_a_reader_is_given_the_camera_s_packets_as_they_are(camera, stream):
    camera.connect()
    camera.hand_on()
    given = packets(str(stream))
    assert len(given) == N_PICTURES
    assert taken(camera.readers[0]) == given


def test_its_sound_is_left_out(camera, stream, tmp_path):
    """Whichever of the two comes first in the camera's own stream."""
    write_sound(tmp_path / "a.mp2", [(0, np.ones(8 * 1152, np.int16))], 16_000, "mp2")
    camera.path = tmp_path / "both.ts"
    with (
        av.open(str(tmp_path / "a.mp2")) as sound,
        av.open(str(stream)) as video,
        av.open(str(camera.path), "w") as both,
    ):
        for old in (sound, video):
            both.add_stream_from_template(old.streams[0])
        for old, new in zip((sound, video), both.streams, strict=True):
            for packet in old.demux(0):
                if packet.dts is not None:
                    packet.stream = new
                    both.mux(packet)
    camera.connect()
    camera.hand_on()
    assert taken(camera.readers[0]) == packets(str(stream))


def test_a_packet_leaves_before_the_next_one_comes(camera):
    def look():
        arrived.append(len(camera.readers[0].recv(1 << 16)))

    arrived = []
    camera.connect()
    camera.done = dict.fromkeys(range(1, N_PICTURES), look)
    camera.hand_on()
    assert len(arrived) == N_PICTURES - 1
    assert {n % 188 for n in arrived} == {0}  # whole packets of MPEG-TS
    assert min(arrived) > 0


def test_one_that_comes_later_begins_at_a_picture_that_needs_no_other(camera, stream):
    _, second, *_ = beginnings(stream)
    camera.done = {second - 1: camera.connect}
    camera.hand_on()
    assert taken(camera.readers[0]) == packets(str(stream))[second:]


def test_there_is_one_at_a_time_and_the_next_one_waits(camera, stream):
    camera.connect()
    camera.connect()
    _, second, third, *_ = beginnings(stream)
    camera.done = {second + 1: lambda: camera.readers[0].close()}
    camera.hand_on()
    assert taken(camera.readers[1]) == packets(str(stream))[third:]


def test_one_that_takes_nothing_has_gone(camera, tmp_path, monkeypatch):
    assert ingest.SEND_TIMEOUT_S == 2.0
    monkeypatch.setattr(ingest, "SEND_TIMEOUT_S", 0.01)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (N_PICTURES, 96, 128, 3), np.uint8)  # more than a socket holds
    camera.path = tmp_path / "noise.ts"
    write_video(camera.path, list(pictures), range(0, 40 * N_PICTURES, 40), "yuv420p", "mpeg4")
    camera.connect()
    camera.connect()
    camera.hand_on()
    given = packets(str(camera.path))
    first, second = (taken(reader) for reader in camera.readers)
    n = len(first) - 1  # the last one may be cut
    assert first[:n] == given[:n]
    assert len(given) > n > 3
    assert second[0] in given[n:]


def test_a_camera_that_comes_back_ends_what_its_reader_was_given(camera, stream):
    """What follows has other times, and may have another size."""
    camera.n_openings = 2
    camera.connect()
    camera.connect()
    camera.hand_on()
    given = packets(str(stream))
    assert [taken(reader) for reader in camera.readers] == [given, given]


def test_what_fails_is_said_without_the_password_and_tried_again(camera, stream, caplog):
    caplog.set_level("INFO")
    camera.n_openings = 2
    camera.done = {20: OSError(110, "Connection timed out")}
    camera.connect()
    camera.connect()
    camera.hand_on()
    given = packets(str(stream))
    assert [taken(reader) for reader in camera.readers] == [given[:20], given]
    lost = "gives no pictures (Connection timed out); check camera and cable"
    assert [record.getMessage() for record in caplog.records] == [
        f"sense=door event=lost error=rtsp://***@10.0.0.1/live: {lost}",
        "sense=door event=back",
        "sense=door event=lost error=it ended",
    ]


def test_a_sound_is_no_camera(camera, caplog, tmp_path):
    camera.path = write_wav(tmp_path / "a.wav", np.ones(1600, np.int16))
    camera.hand_on()
    (record,) = caplog.records
    said = "rtsp://***@10.0.0.1/live: has no pictures; check its address"
    assert record.getMessage() == f"sense=door event=lost error={said}"
