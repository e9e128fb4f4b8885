"""What the session notices by itself, as events for clients."""

from __future__ import annotations

from collections.abc import Mapping

from edge.clock import NS_PER_S
from edge.senses.turn_events import SpeechStarted
from edge.serve.completion import stages_of
from edge.serve.protocol import Json, Topic
from edge.serve.report import report_of
from edge.serve.server_events import (
    EdgeDegraded,
    EdgeDropped,
    EdgeNoted,
    EdgePerceived,
    EdgeRebased,
    EdgeRefused,
    EdgeSpeechAsked,
    EdgeSpeechDelta,
    EdgeSpeechDone,
    EdgeSpeechStarted,
    EdgeSpeechStopped,
    ServerEvent,
)
from edge.serve.trigger_events import EdgeTriggerBegan, EdgeTriggerEnded, ServerTriggerEvent
from edge.session.budget import Degraded
from edge.session.intake import Refused
from edge.session.notes import Noted
from edge.session.perception import Rebased
from edge.session.triggers import TriggerBegan, TriggerEnded
from edge.session.turn import Done, Failed, SpeechStopped, Spoken, TextDelta
from edge.types import Evidence, Stages

TOPICS: dict[type, Topic] = {
    Stages: "perceived",
    Degraded: "degraded",
    Refused: "dropped",
    Rebased: "rebased",
    Noted: "noted",
    TriggerBegan: "trigger",
    TriggerEnded: "trigger",
}
"""The events of `observe` that are for clients. Answers are for those who asked; those to spoken
questions are for all, by `watch`."""


def told_event(event: object, start_ns: int) -> ServerEvent | ServerTriggerEvent | None:
    """What was observed or watched as clients see it; None for what they are not told.

    Args:
        start_ns: the session's beginning, from which `*_s` count.
    """

    def at_s(at_ns: int) -> float:
        return round((at_ns - start_ns) / NS_PER_S, 3)

    def where(evidence: Evidence) -> Json:
        return {
            "source": evidence.source,
            "start_s": at_s(evidence.start_ns),
            "end_s": at_s(evidence.end_ns),
            "frame_ids": list(evidence.frame_ids),
        }

    if isinstance(event, Stages):
        return EdgePerceived(segment=stages_of(event, start_ns))
    if isinstance(event, Degraded):
        return EdgeDegraded(at_s=at_s(event.at_ns), rung=event.rung.name, cause=event.cause)
    if isinstance(event, Refused):
        return EdgeRefused(at_s=at_s(event.at_ns), source=event.source, reason=event.reason)
    if isinstance(event, Rebased):
        return EdgeRebased(at_s=at_s(event.at_ns), n_tokens=event.n_tokens)
    if isinstance(event, Noted):
        return EdgeNoted(at_s=at_s(event.at_ns), text=event.text)
    if not isinstance(event, TriggerBegan | TriggerEnded):
        return _spoken_event(event, start_ns)
    judged: Json = {
        "id": event.id,
        "condition": event.condition,
        "at_s": at_s(event.at_ns),
        "began_s": at_s(event.began_ns),
        "confidence": round(event.confidence, 4),
        "evidence": [where(evidence) for evidence in event.evidence],
    }
    if isinstance(event, TriggerBegan):
        return EdgeTriggerBegan(**judged)
    return EdgeTriggerEnded(**judged, cause=event.cause)


def _spoken_event(event: object, start_ns: int) -> ServerEvent | None:
    """What happens in the robot's own conversation."""
    if isinstance(event, SpeechStarted):
        return EdgeSpeechStarted(onset_s=round((event.onset_ns - start_ns) / NS_PER_S, 3))
    if isinstance(event, SpeechStopped):
        end_s = round((event.end_ns - start_ns) / NS_PER_S, 3)
        return EdgeSpeechStopped(end_s=end_s, is_asked=event.is_asked)
    if isinstance(event, Spoken):
        return EdgeSpeechAsked(asked_s=round((event.asked_ns - start_ns) / NS_PER_S, 3))
    if isinstance(event, TextDelta):
        return EdgeSpeechDelta(delta=event.text, reasoning=event.reasoning)
    if isinstance(event, Done):
        return EdgeSpeechDone(finish_reason=event.finish_reason, edge=report_of(event))
    if isinstance(event, Failed):
        return EdgeSpeechDone(finish_reason="failed", error=str(event.error))
    return None  # a spoken question proposes no tool calls


def dropped_events(before: Mapping[str, int], now: Mapping[str, int]) -> list[EdgeDropped]:
    """What the senses have lost between two looks at the session's counters."""
    events = []
    for name in [name.removesuffix("_dropped") for name in now if name.endswith("_dropped")]:
        lost = {w: now.get(f"{name}_{w}", 0) - before.get(f"{name}_{w}", 0) for w in _LOST}
        if any(lost.values()):
            event = EdgeDropped(sense=name, n_dropped=lost["dropped"], n_skipped=lost["skipped"])
            events.append(event)
    return events


_LOST = ("dropped", "skipped")
