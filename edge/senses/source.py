"""What a camera, a microphone and a recording have in common.

A source belongs to the thread that reads it. It blocks at the pace of the world (or of its
clock), so its reader needs no timer, and it ends its iterator when there is nothing more to come.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from edge.types import AudioChunk, Frame


class FrameSource(Protocol):
    """Anything that sees."""

    def frames(self) -> Iterator[Frame]:
        """Frames in capture order, each given as soon as it has been captured.

        Call it once. It blocks until the next frame, and ends after `close` or, for a source
        that has an end, after the last frame.

        Raises:
            EdgeError: while iterating, when the source fails; the error says what to do.
        """

    def close(self) -> None:
        """Let the iterator end soon and release the device. From any thread, any number of
        times."""


class AudioSource(Protocol):
    """Anything that hears."""

    def chunks(self) -> Iterator[AudioChunk]:
        """Chunks in capture order, each given as soon as its last sample has been heard.

        Call it once. It blocks until the next chunk, and ends after `close` or, for a source
        that has an end, after the last chunk, which may be short.

        Raises:
            EdgeError: while iterating, when the source fails; the error says what to do.
        """

    def close(self) -> None:
        """Let the iterator end soon and release the device. From any thread, any number of
        times."""
