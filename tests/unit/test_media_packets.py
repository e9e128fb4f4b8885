"""What is made of a file's packets and frames, one at a time: times, damage, and what is whole."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from make_media import write_sound, write_video

from edge.errors import MediaError
from edge.senses import media
from edge.senses.damage import Damage
from edge.senses.lengths import lacks_bytes

BROKEN = av.FFmpegError(1094995529, "Invalid data")


def picture(width=64, height=48, corrupt=False):
    return SimpleNamespace(width=width, height=height, is_corrupt=corrupt)


def test_a_smeared_picture_is_shown_when_nothing_else_has_come_for_a_second():
    damage = Damage("")
    whole = media.WholePictures(damage)
    shown = [
        (time_s, corrupt, whole.has(picture(corrupt=corrupt), Fraction(time_s)))
        for time_s, corrupt in (
            (5, True), (5.9, True), (6, True), (6.5, True), (6.75, False), (7.5, True), (7.75, True)
        )
    ]  # fmt: skip
    assert [time_s for time_s, _, is_shown in shown if is_shown] == [6, 6.75, 7.75]
    assert damage.n == 6
    assert damage.last == "a frame is damaged"


@pytest.mark.parametrize("size", [(7, 48), (64, 7), (1 << 15, 1 << 15)])
def test_a_picture_of_an_unusable_size_is_left_out(size):
    damage = Damage("")
    assert not media.WholePictures(damage).has(picture(*size), Fraction(0))
    assert damage.n == 1
    assert damage.last.startswith("a frame is ")


def test_a_packet_that_does_not_decode_is_counted():
    def fails():
        raise BROKEN

    damage = Damage("")
    packet = SimpleNamespace(decode=fails, is_corrupt=False)
    assert media.decoded(packet, damage) == []
    assert (damage.n, damage.last) == (1, "a packet cannot be decoded (Invalid data)")
    packet = SimpleNamespace(decode=lambda: ["frame"], is_corrupt=True)
    assert media.decoded(packet, damage) == ["frame"]
    assert (damage.n, damage.last) == (2, "a packet is not whole")
    packet.is_corrupt = False
    assert media.decoded(packet, damage) == ["frame"]
    assert damage.n == 2


STREAMS = [
    SimpleNamespace(index=0, time_base=Fraction(1, 1000)),
    SimpleNamespace(index=1, time_base=Fraction(1, 100)),
]


def packet(dts, index=0, pts=0, duration=40, size=1):
    """With `pts` from its `dts` on."""
    at = None if pts is None or dts is None else dts + pts
    return SimpleNamespace(stream_index=index, dts=dts, pts=at, duration=duration, size=size)


class Container:
    """Gives packets, and fails where there is None."""

    def __init__(self, packets, flags=0):
        self._left, self.format = list(packets), SimpleNamespace(flags=flags)
        self.n_asked = 0

    def demux(self, *streams):
        self.n_asked += 1
        while self._left:
            if (one := self._left.pop(0)) is None:
                raise BROKEN
            yield one


def straightened(packets, flags=0, damage=None):
    container = Container(packets, flags)
    source = Path("a.mkv")
    given = media._packets(source, container, STREAMS, damage or Damage(""))
    return [(p.dts, p.pts) for p in given]


@pytest.mark.parametrize(
    ("step_ms", "flags", "is_joined"),
    [
        (-100, 0, False),
        (-101, 0, True),
        (30 * 3600 * 1000, 0, False),
        (30 * 3600 * 1000 + 1, 0, True),
        (10_000, 0x200, False),
        (10_001, 0x200, True),
        (-101, 0x200, True),
    ],
)
def test_times_that_jump_are_joined(step_ms, flags, is_joined):
    """All that follows goes on where the packet before has ended, in each track."""
    jumped = 5000 + step_ms
    packets = [packet(5000), packet(jumped, pts=80), packet(jumped + 40, duration=None)]
    packets += [packet(510, 1), packet(None)]
    shift = 5040 - jumped if is_joined else 0
    expected = [(5000, 5000), (jumped + shift, jumped + 80 + shift)]
    expected += [(jumped + 40 + shift, jumped + 40 + shift)]
    expected += [(510 + round(shift / 10),) * 2, (None, None)]
    assert straightened(packets, flags) == expected


def test_a_packet_of_no_time_is_left_as_it_is_and_one_of_another_track_is_left_out():
    packets = [packet(5000), packet(1, index=7), packet(None)]
    assert straightened(packets) == [(5000, 5000), (None, None)]


def test_a_packet_ends_within_a_second():
    assert straightened([packet(0, duration=5000), packet(-500)])[1] == (1000, 1000)


@pytest.mark.parametrize(
    ("time", "ticks", "shifted"),
    [(None, 5, None), (1, 2, 3), (1 << 62, 0, 1 << 62), (1 << 62, 1, None), (-(1 << 62), -1, None)],
)
def test_a_time_that_nobody_could_mean_is_none(time, ticks, shifted):
    assert media._shifted(time, ticks) == shifted


def test_reading_goes_on_behind_what_is_damaged_until_nothing_comes():
    damage = Damage("")
    packets = [packet(0), *[None] * 63, packet(40), packet(60, size=0), packet(80)]
    packets += [*[None] * 64, packet(120)]
    assert [dts for dts, _ in straightened(packets, damage=damage)] == [0, 40, 80]
    assert (damage.n, damage.last) == (127, "cannot be read (Invalid data)")


def frame(pts=None, dts=None):
    return SimpleNamespace(pts=pts, dts=dts)


def given(frames, next_s=2, time_base=Fraction(1, 100)):
    stream = SimpleNamespace(average_rate=None, time_base=time_base)
    times = media._Times(Fraction(next_s), stream)
    return [float(times.of(one) * 100) for one in frames]


def test_frames_without_a_time_follow_at_the_last_pace():
    assert given([frame(), frame(), frame()]) == [200, 204, 208]  # 25 a second
    assert given([frame(10), frame(20), frame(), frame(), frame(45)]) == [10, 20, 30, 40, 45]
    assert given([frame(10), frame(20)], time_base=None) == [200, 204]


def test_no_frame_is_earlier_than_the_one_before():
    assert given([frame(10, 5), frame(30, 15), frame(20, 25)]) == [10, 30, 30]


def test_times_that_go_back_more_often_are_not_taken():
    frames = [frame(10, 10), frame(5, 20), frame(7, 30), frame(6, 40), frame(None, 50)]
    assert given(frames) == [10, 20, 30, 40, 50]
    frames = [frame(10, 10), frame(20, 5), frame(30, 4)]
    assert given(frames) == [10, 20, 30]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A film, and a sound with holes of 0.05 and 0.5 s."""
    folder = tmp_path_factory.mktemp("files")
    pictures = [np.full((16, 16, 3), 20 * n, np.uint8) for n in range(5)]
    write_video(folder / "a.mkv", pictures, range(0, 200, 40))
    ones = np.full(1600, 8192, np.int16)
    write_sound(folder / "a.mkv.mka", [(0, ones), (2400, ones), (12_000, ones)], 16_000)
    return folder


def test_holes_in_the_sound_are_filled_where_they_can_be_heard(files):
    damage = Damage("")
    contents = media.check(files / "a.mkv.mka")
    blocks = [samples for _, samples in media.mono_blocks(contents, damage)]
    sound = np.concatenate(blocks)
    # The first hole is too short to be filled, and adds to the second.
    assert len(sound) == 13_600
    assert abs(sound[:3200] - 0.25).max() < 0.01
    assert not sound[3300:11_900].any()
    assert (damage.n, damage.last) == (1, "0.55 s of sound are missing")


@pytest.mark.parametrize(
    ("name", "frames"), [("a.mkv", media.video_frames), ("a.mkv.mka", media.mono_blocks)]
)
def test_a_file_that_ends_early_says_so_at_its_end(files, name, frames):
    contents = replace(media.check(files / name), ends_early="ends after 1 of 2 s")
    damage = Damage("")
    assert list(frames(contents, damage))
    assert damage.last == "ends after 1 of 2 s"
    assert list(frames(contents))  # nobody counts
    damage = Damage("")
    assert list(frames(replace(contents, ends_early=""), damage))
    assert damage.last != "ends after 1 of 2 s"


@pytest.mark.parametrize(
    ("stated", "n_timed", "span", "rate"),
    [
        ((30, None), 30, (0, 1), 30),
        ((30, None), 28, (0, 1), 30),
        ((60, 30), 30, (0, 1), 30),  # fields
        ((60, None), 30, (5, 6), 30),  # as found
        ((60, None), 0, (0, 1), 60),
        ((60, None), 30, (1, 1), 60),
        ((60, None), 30, (2, 1), 60),
        ((60, None), 30, None, 60),
        ((None, None), 30, None, 25),
        ((None, 50), 1, None, 50),
    ],
)
def test_frames_a_second(monkeypatch, stated, n_timed, span, rate):
    film = SimpleNamespace(average_rate=stated[0], guessed_rate=stated[1])
    monkeypatch.setattr(media, "VideoStream", SimpleNamespace)
    times = span and (Fraction(span[0]), Fraction(span[1]))
    assert media._rate(film, n_timed, times) == rate
    assert media._rate(None, n_timed, times) == 25


@pytest.mark.parametrize(
    ("head", "cut"), [(b"\0\0\0\x18ftypisom", True), (b"nothing at all", False)]
)
def test_what_is_no_media_file_is_told_from_what_is_cut(head, cut):
    said = r"its index \(moov\) is missing; copy it again" if cut else "is not a media file"
    with pytest.raises(MediaError, match=said):
        media.check(head + bytes(100))
    with pytest.raises(MediaError, match="media: is an empty file"):
        media.check(b"")


def atom(kind, size, body=b"", wide=None):
    return size.to_bytes(4, "big") + kind + (wide or b"") + body


@pytest.mark.parametrize(
    ("data", "lacks"),
    [
        *((atom(kind, 16, bytes(8)), False)
          for kind in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")),
        *((atom(kind, 17, bytes(8)), True)
          for kind in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")),
        (atom(b"ftyp", 16, bytes(8)) + atom(b"mdat", 0, bytes(50)), False),  # up to the end
        (atom(b"ftyp", 16, bytes(8)) + atom(b"mdat", 1, bytes(8), (24).to_bytes(8, "big")), False),
        (atom(b"ftyp", 16, bytes(8)) + atom(b"mdat", 1, bytes(8), (25).to_bytes(8, "big")), True),
        (atom(b"ftyp", 16, bytes(8)) + atom(b"mdat", 1, b"\xff" * 8, (24).to_bytes(8, "big")),
         False),
        (atom(b"ftyp", 16, bytes(8)) + atom(b"mdat", 3, bytes(8)) + bytes(0), False),
        (b"RIFF" + (4).to_bytes(4, "little") + b"WAVE", False),
        (b"RIFF" + (5).to_bytes(4, "little") + b"WAVE", True),
        (b"FORM" + (4).to_bytes(4, "big") + b"AIFF", False),
        (b"FORM" + (5).to_bytes(4, "big") + b"AIFF", True),
        (b"RIFF" + (4).to_bytes(4, "little") + b"AVI " + b"RIFF" + (9).to_bytes(4, "little"), True),
        (b"RF64" + bytes(16) + (20).to_bytes(8, "little"), False),
        (b"BW64" + bytes(16) + (21).to_bytes(8, "little"), True),
        (b"\x1aE\xdf\xa3\x81\0" + b"\x18S\x80g\x84" + bytes(4), False),
        (b"\x1aE\xdf\xa3\x81\0" + b"\x18S\x80g\x85" + bytes(4), True),
        (b"\x1aE\xdf\xa3\x81\0" + b"\x18S\x80g\x40\x05" + bytes(5), False),
        (b"\x1aE\xdf\xa3\x81\0" + b"\x18S\x80g\x40\x06" + bytes(5), True),
        (b"\x1aE\xdf\xa3\x81\0" + b"\x18S\x80g\xff" + bytes(4), False),  # nobody knows
        (b"\x1aE\xdf\xa3\x81\0" + b"\x18S\x80g\x00" + bytes(4), False),
        (b"\x1aE\xdf\xa3\x81\0" + b"\x18S\x80g", False),
        (b"OggS" + bytes(40), None),
    ],
)  # fmt: skip
def test_whether_bytes_are_missing(data, lacks):
    assert lacks_bytes(data) is lacks
