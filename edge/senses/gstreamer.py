"""Pictures of a GStreamer pipeline: CSI cameras on a Jetson, its hardware decoder, test pictures.

Needs PyGObject and GStreamer of the distribution; imported only where a source is a pipeline.
Pictures are copied once, from the pipeline's buffer: NVMM memory needs `nvvidconv` before its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from edge.clock import NS_PER_S, Clock
from edge.errors import ConfigurationError, MediaError
from edge.features.pixels import check_size
from edge.senses.address import without_secrets
from edge.senses.live import CaptureTimes
from edge.types import UInt8

try:
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstApp", "1.0")
    from gi.repository import GLib, Gst, GstApp  # noqa: F401  GstApp gives the sink its methods
except (ImportError, ValueError) as error:
    raise ConfigurationError(
        "GStreamer",
        f"cannot be used from Python ({error})",
        "sudo apt install python3-gi gir1.2-gst-plugins-base-1.0",
    ) from None

SINK = (
    "videoconvert ! video/x-raw,format=RGB ! appsink name=edge max-buffers=1 drop=true sync=false"
)
CSI = "nvarguscamerasrc sensor-id=0 ! video/x-raw(memory:NVMM),width=1920,height=1080 ! nvvidconv"
"""What a Jetson's first CSI camera is called in a configuration. Not tried on a device."""
FIRST_TIMEOUT_S, TIMEOUT_S = 10.0, 2.0
"""Until the first picture, and between two."""
BUS_TIMEOUT_S = 0.2
"""The reason follows the fault."""


@contextmanager
def opened_pipeline(source: str, clock: Clock) -> Iterator[Iterator[tuple[int, Any]]]:
    """Run a pipeline; as `edge.senses.camera.Captured`.

    Args:
        source: its elements up to the pictures.
    Raises:
        MediaError: it cannot be made, or stops.
    """
    Gst.init(None)
    try:
        pipeline = Gst.parse_launch(f"{source} ! {SINK}")
    except GLib.Error as error:
        problem = without_secrets(f"is no pipeline ({error.message})")
        raise MediaError(without_secrets(source), problem, "correct it") from None
    try:
        pipeline.set_state(Gst.State.PLAYING)
        yield _captures(source, pipeline, CaptureTimes(clock))
    finally:
        pipeline.set_state(Gst.State.NULL)


def _captures(source: str, pipeline: Any, times: CaptureTimes) -> Iterator[tuple[int, Any]]:
    sink = pipeline.get_by_name("edge")
    timeout_s = FIRST_TIMEOUT_S
    while True:
        sample = sink.try_pull_sample(round(timeout_s * NS_PER_S))
        if sample is None:
            problem = without_secrets(f"stopped ({_why(pipeline)})")
            raise MediaError(without_secrets(source), problem, "check camera and pipeline")
        timeout_s = TIMEOUT_S
        buffer, caps = sample.get_buffer(), sample.get_caps().get_structure(0)
        width, height = caps.get_value("width"), caps.get_value("height")
        check_size(width, height)
        own_ns = None
        if buffer.pts != Gst.CLOCK_TIME_NONE:
            # The pipeline's clock is the machine's monotonic one.
            own_ns = pipeline.get_base_time() + buffer.pts
        yield times.of(own_ns), partial(_pixels, buffer, width, height)


def _pixels(buffer: Any, width: int, height: int) -> UInt8:
    row_bytes = (3 * width + 3) // 4 * 4  # GStreamer pads rows to 4 bytes
    data = buffer.extract_dup(0, buffer.get_size())
    rows = np.frombuffer(data, np.uint8).reshape(height, row_bytes)
    return rows[:, : 3 * width].reshape(height, width, 3).copy()


def _why(pipeline: Any) -> str:
    kinds = Gst.MessageType.ERROR | Gst.MessageType.EOS
    message = pipeline.get_bus().timed_pop_filtered(round(BUS_TIMEOUT_S * NS_PER_S), kinds)
    if message is None:
        return "no pictures came"
    return "it ended" if message.type == Gst.MessageType.EOS else message.parse_error()[0].message
