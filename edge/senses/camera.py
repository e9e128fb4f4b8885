"""Cameras: V4L2, RTSP and MPEG-TS by FFmpeg, CSI and anything else by GStreamer.

FFmpeg comes with PyAV, which plays recordings too; its V4L2 input gives the driver's own times.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from urllib.parse import parse_qsl, urlsplit

import av

from edge.clock import NS_PER_S, Clock
from edge.errors import ConfigurationError, MediaError
from edge.features.pixels import MAX_PIXELS
from edge.senses.address import without_secrets
from edge.senses.damage import Damage
from edge.senses.live import CaptureTimes, again_and_again
from edge.senses.media import WholePictures, decoded, upright_rgb
from edge.types import Frame, UInt8

OPEN_TIMEOUT_S, READ_TIMEOUT_S = 5.0, 2.0
"""A camera that is silent for so long has gone."""
GSTREAMER = " ! "
"""What a pipeline has in it, and no path or address."""
MPEGTS_HELD = 2
"""Pictures that follow before FFmpeg gives one: a packet ends where the next begins, for its
demultiplexer and again for its parser. Measured: tests/live/test_camera.py."""
_V4L2 = "/dev/video"
# Whoever sends may not choose another format: some would make FFmpeg open what they name.
# Nor may it name another place to be read from.
_RTSP = {
    "rtsp_transport": "tcp",
    "format_whitelist": "rtsp",
    "protocol_whitelist": "rtsp,rtsps,rtp,tcp,tls,udp",  # RTP is opened as if it came by UDP
}
_MPEGTS = {"format_whitelist": "mpegts"}
_NETWORK = {
    "rtsp": _RTSP,
    "rtsps": _RTSP,
    "udp": _MPEGTS | {"protocol_whitelist": "udp"},
    # What jetson/edge-ingest@.service hands on.
    "unix": _MPEGTS | {"protocol_whitelist": "unix"},
}
_DECODERS = {"max_pixels": str(MAX_PIXELS)}
_MAX_STREAMS = {"max_streams": "64"}
_LIVE = {"fflags": "nobuffer", "flags": "low_delay", "analyzeduration": "1000000"}

Captured = tuple[int, Callable[[], UInt8]]
"""When it was captured, and what makes [H, W, 3] RGB of it."""


def is_live(source: str) -> bool:
    """Whether a camera's source names a device or a stream, and not a recording."""
    return GSTREAMER in source or source.startswith(_V4L2) or urlsplit(source).scheme in _NETWORK


def is_on_network(source: str) -> bool:
    """Whether a camera's source is an address."""
    return urlsplit(source).scheme in _NETWORK.keys() - {"unix"}


def open_stream(source: str) -> av.container.InputContainer:
    """A V4L2 device or a network stream.

    Raises:
        MediaError: it gives nothing now.
    """
    try:
        if source.startswith(_V4L2):
            path, _, query = source.partition("?")
            return av.open(path, format="v4l2", options=dict(parse_qsl(query)))
        return av.open(
            source,
            options=_LIVE | _DECODERS | _MAX_STREAMS | _NETWORK[urlsplit(source).scheme],
            timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S),
        )
    except (av.FFmpegError, OSError) as error:
        raise lost(source, error) from None


class Camera:
    """A `FrameSource` that goes on when its camera comes back."""

    def __init__(self, name: str, source: str, clock: Clock, fps: float) -> None:
        """Open nothing yet.

        Args:
            name: of the sense.
            source: `/dev/video0`, with FFmpeg's options behind a question mark if need be
                (`?video_size=1280x720&input_format=mjpeg`); `rtsp://...`; `udp://...`;
                `unix:/a/socket`; or the elements of a GStreamer pipeline up to its pictures.
            fps: most frames to give a second, above 0.
        Raises:
            ConfigurationError: it is none of these.
        """
        if not is_live(source):
            raise ConfigurationError(
                f"camera {name}",
                f"has the source {without_secrets(source)!r}",
                "run `edge devices` to see some",
            )
        self._name, self._clock, self._period_ns = name, clock, round(NS_PER_S / fps)
        self._damage = Damage(name)
        if GSTREAMER in source:
            from edge.senses.gstreamer import opened_pipeline  # optional: needs PyGObject

            self._opened = partial(opened_pipeline, source, clock)
        else:
            self._opened = partial(_opened, source, clock, self._damage)
        self._closed = threading.Event()

    @property
    def n_lost(self) -> int:
        """Packets that were lost on the way, and damaged frames."""
        return self._damage.n

    def frames(self) -> Iterator[Frame]:
        """Frames as they are captured, at most fps a second; ids count all that arrived."""
        due_ns = 0
        captures = again_and_again(self._name, self._opened, self._closed)
        for frame_id, (capture_ns, pixels) in enumerate(captures):
            if capture_ns < due_ns:
                continue
            # A frame that is a little early is on time; after a gap counting begins anew.
            due_ns = max(due_ns + self._period_ns, capture_ns + self._period_ns // 2)
            yield Frame(pixels(), capture_ns, frame_id, self._name)

    def close(self) -> None:
        """Let the iterator end soon."""
        self._closed.set()


@contextmanager
def _opened(source: str, clock: Clock, damage: Damage) -> Iterator[Iterator[Captured]]:
    """A V4L2 device or a network stream."""
    with open_stream(source) as container:
        n_held = MPEGTS_HELD if container.format.name == "mpegts" else 0
        yield _captures(source, container, CaptureTimes(clock, n_held), damage)


def _captures(
    source: str, container: av.container.InputContainer, times: CaptureTimes, damage: Damage
) -> Iterator[Captured]:
    """Its pictures; what is damaged is left out as from a recording."""
    stream = next((s for s in container.streams.video if s.codec_context is not None), None)
    if stream is None:
        raise MediaError(without_secrets(source), "has no pictures", "check the camera's address")
    stream.thread_type = "SLICE"  # frame threads would hold frames back
    stream.codec_context.options = _DECODERS
    whole = WholePictures(damage)
    try:
        for packet in container.demux(stream):
            for frame in decoded(packet, damage) if packet.size else ():
                assert isinstance(frame, av.VideoFrame)
                own_ns = None
                if frame.pts is not None and stream.time_base is not None:
                    own_ns = round(frame.pts * stream.time_base * NS_PER_S)
                capture_ns = times.of(own_ns)
                if whole.has(frame, Fraction(capture_ns, NS_PER_S)):
                    yield capture_ns, partial(upright_rgb, frame)
    except (av.FFmpegError, OSError) as error:
        raise lost(source, error) from None


def lost(source: str, error: av.FFmpegError | OSError) -> MediaError:
    """A camera that gives nothing any more."""
    return MediaError(
        without_secrets(source),
        f"gives no pictures ({error.strerror or error})",
        "check camera and cable",
    )
