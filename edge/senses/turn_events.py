"""What happens in a conversation, as far as the microphone tells.

SpeechStarted  (SoftEnd  Resumed)*  [SoftEnd]  Ended | Withdrawn

with Cut wherever it grows too long. Each SpeechStarted has one end, whatever happens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge.types import AudioChunk

Mode = Literal["open", "push_to_talk", "typed"]
"""open: speech takes the turn. push_to_talk: only between `begin` and `commit`. typed: never; what
is said is overheard."""


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """Speech as one clip."""

    clip: AudioChunk
    """With the pre-roll and the post-roll."""
    onset_ns: int
    """When its first word began, estimated."""
    end_ns: int
    """When its last word ended, estimated."""


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """Somebody speaks: what the robot itself is saying should stop."""

    onset_ns: int
    """When it began, estimated."""
    noticed_ns: int
    """The capture time up to which had to be heard to be sure."""


@dataclass(frozen=True, slots=True, eq=False)
class SoftEnd:
    """A pause: this may have been all."""

    utterance: Utterance | None
    """What `Ended` will hold if speech is not resumed."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """It was not all: what was begun at the soft end is to be dropped."""

    at_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """The utterance is too long for one clip: this much of it, and it goes on."""

    utterance: Utterance


@dataclass(frozen=True, slots=True, eq=False)
class Ended:
    """The turn is over."""

    utterance: Utterance | None
    """What was said, or after a cut the rest of it; None if the cuts hold everything."""
    held: bool = False
    """It was said while the button was held: by an operator, not by anybody who can be heard."""


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The turn is over and asks nothing: whoever spoke has taken it back, or waits no longer for an
    answer. What was begun at a soft end is to be dropped."""

    at_ns: int
    """When the last word ended, estimated."""


@dataclass(frozen=True, slots=True, eq=False)
class Overheard:
    """Speech that takes no turn: for the context only."""

    utterance: Utterance


TurnEvent = SpeechStarted | SoftEnd | Resumed | Cut | Ended | Withdrawn | Overheard


@dataclass(frozen=True, slots=True)
class Choose:
    """A client chooses who may take the turn."""

    mode: Mode


@dataclass(frozen=True, slots=True)
class Button:
    """A client presses or releases the button of push-to-talk, or forgets what was said."""

    do: Literal["begin", "commit", "cancel"]


@dataclass(frozen=True, slots=True, eq=False)
class Played:
    """What the robot itself says, as `TurnDetector.play` needs it."""

    chunk: AudioChunk


@dataclass(frozen=True, slots=True)
class Silence:
    """No sound has come for so long: the microphone has gone, or nobody listens to it."""

    gap_ns: int


Control = Choose | Button | Played
"""What a client says to the microphone's turn-taking, in order with its sound."""
