"""How fresh an answer is: what it stands on of each sense, and which senses have fallen silent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

from edge.session.context import LiveContext
from edge.session.sense import Sense
from edge.session.turn import Freshness

FreshnessOf: TypeAlias = Callable[[LiveContext, int], tuple[Freshness, ...]]
"""Given what an answer stands on and when it begins (monotonic ns): each sense's freshness."""


def freshness(
    senses: Sequence[Sense[Any]], stale_ns: int, context: LiveContext, now_ns: int
) -> tuple[Freshness, ...]:
    """Each sense's freshness now.

    A sense is stale when the loop has taken nothing from it that is younger than the limit. What it
    has perceived may be much older: a microphone that waits for speech hears silence, too.

    Args:
        stale_ns: the limit.
        context: what the answer stands on.
    """
    found = []
    for sense in senses:
        modality: Literal["audio", "video"] = "audio" if sense.hears else "video"
        captured_ns = context.newest_capture_ns(sense.source, modality)
        taken_ns = sense.newest_ns
        found.append(
            Freshness(
                source=sense.source,
                modality=modality,
                age_ns=None if captured_ns is None else now_ns - captured_ns,
                is_stale=taken_ns is None or now_ns - taken_ns > stale_ns,
            )
        )
    return tuple(found)
