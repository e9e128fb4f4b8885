"""Where an answer comes from: what the robot saw, what it heard, both, or one against the other.

The answer is followed token by token on three other states: one that holds only what was seen, one
that holds only what was heard, one that holds neither. The model is not asked for its opinion of
itself: a sense gives an answer if the model would have given it from that sense alone, and would
not have given it without any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from edge.engines.engine import MAX_PREFILL_TOKENS, AnyEngine
from edge.model.constrain import Constraint
from edge.session.confidence import Certainty, log_probability
from edge.session.slot import Perceived, Slot, Slots
from edge.session.turn import Consistency, Verdict
from edge.types import Float32, Modality

SENSES: tuple[Modality, ...] = ("video", "audio")
MAX_TOKENS = 64
"""So many of an answer's tokens are followed, the first ones."""
LIKELY = 0.5
"""From here on an answer, or a word that is not in it, is likely: above all others together."""

Check: TypeAlias = Generator[None, None, Consistency]
"""Each step is one call of the engine."""


@dataclass(frozen=True, slots=True)
class Followed:
    """An answer as it looks to one state."""

    likelihood: float
    """As `Certainty` has it."""
    favourites: tuple[tuple[int, float], ...]
    """At each of its tokens: the likeliest instead, and how likely that is."""


def check(
    slots: Slots,
    kept: Mapping[Modality, Sequence[Perceived]],
    ask: Callable[[bool], Float32],
    said: Sequence[int],
    constrain: Callable[[], Constraint | None],
) -> Check:
    """Follow an answer.

    Args:
        slots: of the context that it stood on, which is not changed.
        kept: what each of `SENSES` perceived in it, as much as is kept for a rebase.
        ask: the question's rows [n, H], given whether it comes behind something perceived.
        said: the answer's tokens.
        constrain: a fresh constraint, where the answer has a format.

    Returns:
        Steps, and at their end what was found.
    """
    said, engine = said[:MAX_TOKENS], slots.engine
    nothing = yield from _follow(engine, slots.of(), ask(False), said, constrain())
    found: dict[Modality, Followed] = {}
    for sense in SENSES:
        if kept[sense]:
            # Not a variable here: one such state at a time.
            found[sense] = yield from _follow(
                engine, slots.of(kept[sense]), ask(True), said, constrain()
            )
    return judged(said, nothing, found.get("video"), found.get("audio"))


def _follow(
    engine: AnyEngine,
    slot: Slot,
    question: Float32,
    said: Sequence[int],
    constraint: Constraint | None,
) -> Generator[None, None, Followed]:
    while slot.n_waiting:
        slot.advance()
        yield
    for start in range(0, len(question), MAX_PREFILL_TOKENS):
        logits = engine.prefill(slot.state, question[start : start + MAX_PREFILL_TOKENS])
        yield
    certainty, favourites = Certainty(), []
    for n, token in enumerate(said):
        allowed = logits if constraint is None else constraint.allow(logits)
        favourite = int(allowed.argmax())
        favourites.append((favourite, math.exp(log_probability(allowed, favourite))))
        certainty.add(allowed, token)
        if constraint is not None:
            constraint.take(token)
        if n + 1 < len(said):
            logits = engine.decode(slot.state, token)
            yield
    return Followed(1.0 if certainty.value is None else certainty.value, tuple(favourites))


def judged(
    said: Sequence[int], nothing: Followed, seen: Followed | None, heard: Followed | None
) -> Consistency:
    """What follows from how likely an answer is with each sense alone, and with none.

    Args:
        said: its tokens.
        seen: None where nothing was seen, as with `heard`.
    """
    gives = [
        sense is not None and sense.likelihood >= LIKELY > nothing.likelihood
        for sense in (seen, heard)
    ]
    verdict: Verdict = "neither"
    if any(sense is not None and _objects(said, sense, nothing) for sense in (seen, heard)):
        verdict = "contradicted"
    elif any(gives):
        verdict = "both" if all(gives) else "seen" if gives[0] else "heard"
    return Consistency(
        verdict,
        None if seen is None else seen.likelihood,
        None if heard is None else heard.likelihood,
        nothing.likelihood,
    )


def _objects(said: Sequence[int], sense: Followed, nothing: Followed) -> bool:
    """Whether a sense alone gives another answer, which the model would not give without it."""
    steps = zip(said, sense.favourites, nothing.favourites, strict=True)
    for token, (favourite, likelihood), (usual, _) in steps:
        if favourite != token:
            return likelihood >= LIKELY and favourite != usual
    return False
