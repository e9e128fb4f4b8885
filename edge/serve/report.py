"""The key `edge` of an answer: its timing, how sure and how fresh it is, and what it stands on.

The same in a chat completion, in response.done and in edge.speech.done; its JSON Schema is
docs/schema/edge_answer.json.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

import msgspec

from edge.clock import NS_PER_MS, NS_PER_S
from edge.session.turn import Done, Verdict


class AnswerEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """One of the newest segments of the live context."""

    source: str
    """Which camera, microphone or file."""
    start_s: float
    """Captured, since the question: mostly negative, as the other."""
    end_s: float
    frame_ids: list[int]


class AnswerSource(msgspec.Struct, frozen=True, kw_only=True):
    """One camera or microphone, and how fresh what the answer has of it is."""

    source: str
    modality: Literal["video", "audio"]
    age_s: float | None
    """Of the newest frame or sound that was perceived, when the answer was begun; null: nothing of
    it is in the context."""
    stale: bool
    """Nothing younger than perception.stale_s has come from it; a microphone that hears silence is
    not stale."""


class AnswerConsistency(msgspec.Struct, frozen=True, kw_only=True):
    """Where an answer comes from, if its request has asked for that.

    The numbers are how likely the answer is, 0..1, to the model with one sense alone and with none.
    """

    verdict: Verdict
    """seen, heard, both: which sense alone gives the answer; contradicted: a sense alone gives
    another one; neither: it takes both together, or the model would say it anyway."""
    seen: float | None
    """null: nothing was seen."""
    heard: float | None
    nothing: float


class AnswerReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer says of itself. Times in ms are since the question was asked."""

    waited_ms: float
    prefilled_ms: float
    first_token_ms: float
    finished_ms: float
    newest_capture_age_ms: float | None
    """How old the newest frame or sound in the state was when it was asked; negative if it was
    captured while the question waited, null without any."""
    n_context_tokens: int
    confidence: float | None
    """0..1, the geometric mean of the probabilities of the answer's tokens, reasoning and what a
    format leaves no choice about excepted; null if there are none. Not calibrated: compare answers
    of one model."""
    consistency: AnswerConsistency | None
    """null: it was not asked for, or the answer ended before it was found out."""
    sources: list[AnswerSource]
    """All cameras and microphones."""
    evidence: list[AnswerEvidence]
    """The newest segments, oldest first; before them what else holds a frame that the answer may
    name."""


def report_of(done: Done) -> AnswerReport:
    """What an answer says of itself."""
    timeline = done.timeline
    asked_ns, captured_ns = timeline.asked_ns, timeline.captured_ns

    def since_asked(at_ns: int, unit_ns: int) -> float:
        return round((at_ns - asked_ns) / unit_ns, 3)

    found = done.consistency
    age_ms = None if captured_ns is None else round((asked_ns - captured_ns) / NS_PER_MS, 3)
    return AnswerReport(
        waited_ms=since_asked(timeline.started_ns, NS_PER_MS),
        prefilled_ms=since_asked(timeline.prefilled_ns, NS_PER_MS),
        first_token_ms=since_asked(timeline.first_token_ns, NS_PER_MS),
        finished_ms=since_asked(timeline.finished_ns, NS_PER_MS),
        newest_capture_age_ms=age_ms,
        n_context_tokens=timeline.n_context_tokens,
        confidence=done.confidence,
        consistency=None if found is None else AnswerConsistency(**asdict(found)),
        sources=[
            AnswerSource(
                source=fresh.source,
                modality=fresh.modality,
                age_s=None if fresh.age_ns is None else round(fresh.age_ns / NS_PER_S, 3),
                stale=fresh.is_stale,
            )
            for fresh in timeline.freshness
        ],
        evidence=[
            AnswerEvidence(
                source=evidence.source,
                start_s=since_asked(evidence.start_ns, NS_PER_S),
                end_s=since_asked(evidence.end_ns, NS_PER_S),
                frame_ids=list(evidence.frame_ids),
            )
            for evidence in timeline.evidence
        ],
    )
