"""What is made of a file's packets and frames, one at a time: times, damage, and what is whole."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from make_media import write_film, write_sound, write_video

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


def counted(n, sizes):
    """Whether packets of these sizes are taken from a client's file of n bytes."""
    packets = [packet(40 * i, size=size) for i, size in enumerate(sizes)]
    return len(list(media._packets(bytes(n), Container(packets), STREAMS, Damage(""))))


def test_a_file_may_unpack_to_twice_its_size_and_a_megabyte():
    assert counted(1000, [2000, 1 << 20]) == 2
    with pytest.raises(MediaError, match="media: unpacks to more than 2 times what it has"):
        counted(1000, [2001, 1 << 20])


def test_damaged_sound_is_left_out_and_counted_and_an_empty_frame_is_nothing(monkeypatch):
    kinds = [(False, 48_000, 9), (True, 48_000, 9), (False, 0, 9), (False, 1, 0), (False, 1, 1)]
    frames = [SimpleNamespace(is_corrupt=c, sample_rate=r, samples=n) for c, r, n in kinds]
    monkeypatch.setattr(media, "_frames", lambda *_: ((Fraction(0), one) for one in frames))
    damage = Damage("")
    whole = [one for _, one in media._usable_frames(b"", "sound", Fraction(0), damage)]
    assert whole == [frames[0], frames[4]]
    assert (damage.n, damage.last) == (2, "a frame is damaged")


def test_the_silence_in_a_hole_comes_by_the_second_each_at_its_time(monkeypatch):
    def sound(n, time_s):
        return media._Block(np.ones((n, 2), np.float32), 1000, Fraction(time_s))

    stored = [sound(500, 3), sound(100, "6.1"), sound(100, "6.3"), sound(100, "6.501")]
    monkeypatch.setattr(media, "_sound_blocks", lambda *_: iter(stored))
    damage = Damage("")
    found = [
        (float(block.time_s), len(block.samples), bool(block.samples.any()))
        for block in media._unbroken_blocks(b"", Fraction(3), damage)
    ]
    assert found == [
        (3, 500, True), (3.5, 1000, False), (4.5, 1000, False), (5.5, 600, False),
        (6.1, 100, True),
        (6.3, 100, True),  # a tenth of a second is no hole, and is not forgotten
        (6.3, 201, False), (6.501, 100, True),
    ]  # fmt: skip
    assert (damage.n, damage.last) == (2, "0.20 s of sound are missing")


@pytest.mark.parametrize("scale", [1, 1 << 16])
@pytest.mark.parametrize("turn", [
    (1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1),
    (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, -1, 0), (0, -1, -1, 0),
])  # fmt: skip
def test_a_picture_is_shown_as_its_matrix_says(monkeypatch, turn, scale):
    """x' = a x + c y, y' = b x + d y: however small, a factor's sign counts."""
    a, b, c, d = turn
    lying = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    matrix = np.array([a, b, 0, c, d, 0, 0, 0, 1], np.int32) * scale
    monkeypatch.setattr(media, "SideData", bytes)
    one = SimpleNamespace(
        to_ndarray=lambda format: lying, side_data={"DISPLAYMATRIX": matrix.tobytes()}
    )
    places = {(a * x + c * y, b * x + d * y): lying[y, x].tolist() for y, x in np.ndindex(2, 3)}
    left, top = (min(place[axis] for place in places) for axis in (0, 1))
    shown = media.upright_rgb(one)
    assert {
        (x + left, y + top): shown[y, x].tolist() for y, x in np.ndindex(shown.shape[:2])
    } == places


@pytest.mark.parametrize("size", [(4096, 4096), (4097, 4096), (8193, 8192), (7, 99)])
def test_a_client_s_film_has_at_most_so_many_pixels(size):
    width, height = size
    said = {
        (4097, 4096): "media: is 4097x4096 pixels; scale it down to at most 16777216 pixels",
        (8193, 8192): "media: is 8193x8192 pixels; scale it down to at most 67108864 pixels",
        (7, 99): "media: is 7x99 pixels; give one of at least 8 pixels on each side",
    }.get(size)
    if said is None:
        media._check_size(b"film", width, height)
    else:
        with pytest.raises(MediaError) as caught:
            media._check_size(b"film", width, height)
        assert str(caught.value) == said
    if width * height < 1 << 26 and width > 8:
        media._check_size(Path("a.mkv"), width, height)  # the owner's own


def test_ffmpeg_may_open_nothing_but_the_file(monkeypatch, tmp_path):
    given = []

    def opened(file, mode, metadata_errors, options):
        given.append((mode, metadata_errors, options))

    monkeypatch.setattr(av, "open", opened)
    path = tmp_path / "a.mkv"
    path.write_bytes(b"film")
    media._opened(path)
    media._opened(b"film")
    bounds = {"format_whitelist": media._CONTAINERS, "max_samples": str(1 << 20)}
    mine = bounds | {"protocol_whitelist": "file", "max_pixels": str(1 << 26)}
    client = bounds | {"protocol_whitelist": "none", "max_pixels": str(1 << 24)}
    client |= {"max_streams": "64"}
    assert given == [("r", "ignore", mine), ("r", "ignore", client)]
    formats = media._CONTAINERS.split(",")
    assert not {"hls", "concat", "dash", "sdp", "image2", "tty", "lavfi"} & set(formats)


def test_a_track_of_which_nothing_can_be_decoded_is_refused_or_ignored(monkeypatch, files, caplog):
    source = files / "a.mkv.mka"
    with pytest.MonkeyPatch.context() as nothing:
        nothing.setattr(media, "_usable_frames", lambda *_: iter(()))
        for need in ((), ["sound"]):
            with pytest.raises(MediaError, match="has sound of which nothing can be decoded; rec"):
                media.check(source, need)
    film = write_film(files / "both.mkv", [np.zeros((32, 48, 3), np.uint8)] * 2,
                      np.ones(1600, np.int16), Fraction(0))  # fmt: skip
    usable = media._usable_frames

    def no_sound(file, track, *words):
        return iter(()) if track == "sound" else usable(file, track, *words)

    monkeypatch.setattr(media, "_usable_frames", no_sound)
    assert media.check(film).tracks == {"video"}
    assert "source=both.mkv event=ignored track=sound problem=has sound of which" in caplog.text
    with pytest.raises(MediaError, match="has sound of which nothing can be decoded; record it"):
        media.check(film, ["sound"])


class Film(Container):
    """As `av.open` gives it: of a kind, and of a duration in microseconds."""

    def __init__(self, kind, stated_s, packets):
        super().__init__(packets)
        self.format.name, self.duration = kind, stated_s and round(stated_s * 1_000_000)


def part(at, duration=100, *, index=0, corrupt=False, discard=False, dts=None):
    """A packet of a hundredth of a second's ticks."""
    return SimpleNamespace(
        stream_index=index, pts=at, dts=dts, duration=duration, size=1, is_corrupt=corrupt,
        is_discard=discard,
    )  # fmt: skip


def surveyed(monkeypatch, kind, stated_s, packets, *, lacks=None, file=b"", max_s=60):
    monkeypatch.setattr(media, "lacks_bytes", lambda _: lacks)
    monkeypatch.setattr(media, "VideoStream", SimpleNamespace)
    streams = {
        "video": SimpleNamespace(
            index=0, time_base=Fraction(1, 100), average_rate=Fraction(2), guessed_rate=None
        ),
        "sound": SimpleNamespace(index=1, time_base=Fraction(1, 100)),
    }
    return media._survey(file or Path("a"), Film(kind, stated_s, packets), streams, max_s)


@pytest.mark.parametrize(
    ("kind", "stated_s", "at", "missing"),
    [
        ("avi", 2.5, [0, 100], ""),
        ("avi", 2.6, [0, 100], "ends after 2.00 of 2.60 s"),
        ("avi", 2.6, [300, 400], "ends after 5.00 of 5.60 s"),  # counts from its beginning
        ("avi", 2.5, [300, 400], ""),
        ("avi", 0.6, [], "ends after 0.00 of 0.60 s"),
        ("avi", 0.5, [], ""),
        ("avi", None, [0], ""),
        ("matroska,webm", 5.5, [300, 400], ""),  # counts from time 0
        ("matroska,webm", 5.6, [300, 400], "ends after 5.00 of 5.60 s"),
        ("matroska,webm", 2.6, [300, 400], "ends after 5.00 of 5.60 s"),  # less than its beginning
        ("matroska,webm", 3, [300], ""),
        ("flac", 2.6, [0, 100], "is cut short after 2.00 of 2.60 s"),
        ("flac", 2.125, [0, 100], ""),
        ("flac", 2.126, [0, 100], "is cut short after 2.00 of 2.13 s"),
        ("mov,mp4,m4a,3gp,3g2,mj2", 2.6, [0, 100], "ends after 2.00 of 2.60 s"),
        ("mp3", 9, [0, 100], ""),
        ("ogg", 9, [0, 100], ""),
    ],
)
def test_what_a_file_lacks_of_its_length(monkeypatch, kind, stated_s, at, missing):
    packets = [part(time) for time in at]
    if missing.startswith("is cut"):
        with pytest.raises(MediaError, match=missing):
            surveyed(monkeypatch, kind, stated_s, packets)
        return
    survey = surveyed(monkeypatch, kind, stated_s, packets, file=b"no table")
    assert survey.ends_early == missing


@pytest.mark.parametrize("word", [b"Xing", b"Info", b"none"])
def test_an_mp3_has_a_length_where_its_first_frame_says_it(monkeypatch, word):
    survey = surveyed(monkeypatch, "mp3", 9, [part(0)], file=b"mp3 " + word)
    assert survey.ends_early == ("" if word == b"none" else "ends after 1.00 of 9.00 s")


@pytest.mark.parametrize(
    ("kind", "lacks", "corrupt", "is_cut"),
    [
        ("avi", True, (False, False), True),
        ("avi", False, (False, True), False),  # the bytes tell
        ("ogg", None, (False, True), True),
        ("ogg", None, (True, False), False),  # only the last packet can be cut
        ("ogg", None, (False, False), False),
        ("mpegts", None, (False, True), False),
        ("mpeg", None, (False, True), False),
        ("mpegts", True, (False, False), True),
    ],
)
def test_whether_a_file_is_cut(monkeypatch, kind, lacks, corrupt, is_cut):
    packets = [part(100 * i, corrupt=one) for i, one in enumerate(corrupt)]
    if is_cut:
        with pytest.raises(MediaError, match=r"is cut short after 2\.00 of 2\.00 s; copy it again"):
            surveyed(monkeypatch, kind, None, packets, lacks=lacks)
    else:
        assert surveyed(monkeypatch, kind, None, packets, lacks=lacks).end_s == 2


def test_a_survey_tells_when_each_track_begins_and_the_last_one_ends(monkeypatch):
    """Two pictures before the first that has a time: at 2 a second they take a second."""
    packets = [
        part(None), part(None), part(500, 50), part(None, 50, dts=550),
        part(480, 30, index=1), part(450, 30, index=1), part(500, None, index=1),
        part(None, index=1), part(460, 30, index=1, discard=True),
    ]  # fmt: skip
    survey = surveyed(monkeypatch, "ogg", None, packets)
    assert survey.starts_s == {"video": 4, "sound": Fraction("4.5")}
    assert survey.n_packets == {"video": 4, "sound": 4}
    assert survey.end_s == 6
    assert survey.frames_per_s == 2
    untimed = surveyed(monkeypatch, "ogg", None, [part(None)] * 3)
    assert untimed.starts_s == {"video": 0, "sound": 0}
    assert untimed.end_s == Fraction("1.5")


def test_more_packets_than_a_second_can_need_are_refused(monkeypatch):
    packets = [part(0, index=i % 2) for i in range(4000)]
    assert surveyed(monkeypatch, "ogg", None, packets, max_s=2).n_packets["video"] == 2000
    with pytest.raises(MediaError, match="has more packets than 2 s need; send a shorter one"):
        surveyed(monkeypatch, "ogg", None, [*packets, part(0)], max_s=2)


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
        (b"RIFF" + (4).to_bytes(4, "little") + b"WAVE" + b"junk" + b"\x99" * 4, False),
        (b"RIFF" + (4).to_bytes(4, "little") + b"WAVE" + b"RIFF\x99", False),
        (b"RIFF" + b"\xff" * 4 + b"WAVE", False),  # into a pipe
        (b"RIFF" + bytes(4) + b"RIFF" + b"\x99" * 4, False),  # what follows is of the first
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
