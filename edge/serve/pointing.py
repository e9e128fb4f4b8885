"""Places in what the robot sees, for a request's own JSON Schema.

A point or a box means something only in one frame. A schema asks for its name by a string of the
format `edge.frame`; the service allows the newest frame of each camera that the answer stands on,
as `camera:number`, and no other.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from edge.model.constrain import FRAME_FORMAT

Frame = Annotated[str, Meta(extra_json_schema={"format": FRAME_FORMAT})]
Thousandths = Annotated[int, Meta(ge=0, le=1000)]
"""Of the frame's width, from its left, or of its height, from its top."""


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A place in a frame."""

    frame: Frame
    point: tuple[Thousandths, Thousandths]
    """x, y."""


class Box(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a frame."""

    frame: Frame
    box: tuple[Thousandths, Thousandths, Thousandths, Thousandths]
    """Left, top, right, bottom."""
