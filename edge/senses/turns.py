"""Turn-taking: who speaks, from when to when, and whose turn it is.

Speech is timed in blocks of 32 ms. A short pause is a soft end: an answer to what was said so far
may be begun, to be dropped if speech is resumed. A longer pause ends the utterance, whose clip is
then the soft end's, sample by sample. No sample is in two clips.
"""

from __future__ import annotations

from collections.abc import Callable

from edge.clock import NS_PER_MS, NS_PER_S
from edge.errors import ProtocolError
from edge.senses.echo import Echo
from edge.senses.silero import Silero
from edge.senses.sound import Blocks, end_ns, goes_on, joined, must_be_finite
from edge.senses.turn_events import (
    Button,
    Choose,
    Control,
    Cut,
    Ended,
    Mode,
    Overheard,
    Resumed,
    Silence,
    SoftEnd,
    SpeechStarted,
    TurnEvent,
    Utterance,
    Withdrawn,
)
from edge.types import AudioChunk, Float32

START = 0.5
"""Speech begins with a block of at least this probability..."""
STOP = 0.35
"""...and pauses at the first one below this."""
MIN_SPEECH_BLOCKS = 7
"""0.22 s of blocks with speech; what has fewer is a click and no utterance."""
SOFT_END_BLOCKS = 8
"""A pause of 0.26 s is a soft end: the post-roll is complete, so the clip is final."""
MIN_SILENCE_BLOCKS = 20
"""A pause of 0.64 s ends an utterance: one of 0.4 s between words sounds up to 0.6 s long."""
PRE_ROLL_BLOCKS = 10
"""0.32 s before the onset belong to it: a word begins before it is recognised as speech."""
POST_ROLL_BLOCKS = 8
"""0.26 s of the pause belong to it: a last consonant is quiet, and nobody waits for it longer."""
MAX_BLOCKS = 468
"""14.98 s: a longer utterance is cut here and goes on as a new one."""
CERTAIN = 0.65
"""The last word ended with the last block of this probability: what follows is noise or echo."""
MAX_GAP_NS = 2 * NS_PER_S
"""Whoever spoke before a longer gap in the sound does not wait for an answer behind it."""
MAX_HELD_NS = 60 * NS_PER_S
"""A button that is held for longer and not pressed again was forgotten: its client may be dead."""
ONSET_LAG_NS = 80 * NS_PER_MS
"""Speech is recognised this much after it began: the middle of what was measured, 0..0.17 s."""


class TurnDetector:
    """Makes turns of one microphone's sound. Holds at most `MAX_BLOCKS` of it."""

    def __init__(
        self, mode: Mode = "open", probability: Callable[[Float32], float] | None = None
    ) -> None:
        """Wait for speech.

        Args:
            probability: float32 [512] -> probability of speech in it, 0..1; called for each
                block of the stream, in order. None takes a new `Silero`.
        """
        self._mode = mode
        self._probability = probability or Silero()
        self._echo: Echo | None = None
        self._sound = Blocks()
        self._blocks: list[AudioChunk] = []  # the utterance so far; before its onset the pre-roll
        self._held = False  # between begin and commit
        self._held_since_ns: int | None = None  # None: no sound has come since
        self._is_told = False  # that somebody speaks, and not yet that it is over
        self._voiced = False  # the newest block, by hysteresis
        self._n_voiced = 0  # in this utterance; 0 before its onset
        self._n_quiet = 0  # since the last voiced block
        self._onset_ns = self._end_ns = 0  # of this utterance, estimated

    @property
    def mode(self) -> Mode:
        """Whose speech takes the turn."""
        return self._mode

    def play(self, chunk: AudioChunk) -> None:
        """Know what the robot says itself, so that it is not taken for somebody's speech.

        Args:
            chunk: what is played; its capture time is when its first sample leaves the
                loudspeaker, as far as known: the microphone may hear it up to 0.3 s later. Give
                it before the microphone's sound of that time is pushed.

        Raises:
            MediaError: a sample is not a finite number.
        """
        must_be_finite(chunk)
        self._echo = self._echo or Echo()
        self._echo.play(chunk)

    def push(self, chunk: AudioChunk) -> list[TurnEvent]:
        """Take the microphone's next chunk, of any length; what happened in it.

        Raises:
            MediaError: a sample is not a finite number. Only this chunk is lost, not the whole
                utterance around it.
        """
        must_be_finite(chunk)
        rest = self._sound.rest
        events = []
        if rest is not None and not goes_on(rest, chunk):
            events = self._lost(chunk.capture_ns - end_ns(rest))
        for block in self._sound.push(chunk):
            events += self._take(block)
        return events

    def flush(self) -> list[TurnEvent]:
        """The utterance that the end of the sound cut short; what comes next is heard anew."""
        self._take_rest()
        return self._told(self._end()) + self._restart()

    def _take_rest(self) -> None:
        rest = self._sound.rest
        if self._voiced and rest is not None and len(rest.samples):
            self._blocks.append(rest)  # it cannot be judged: speech if the block before it was

    def begin(self) -> list[TurnEvent]:
        """The button is pressed: what is said from now on is for the robot, pauses and all.

        It is let go by itself after `MAX_HELD_NS` of the sound's time: what was said is overheard.
        Pressed again before, it goes on being held for as long.

        Returns:
            What was being said before, as overheard.

        Raises:
            ProtocolError: the mode is not push_to_talk.
        """
        if self._mode != "push_to_talk":
            raise ProtocolError("begin", f"the mode is {self._mode}", "choose push_to_talk")
        self._held_since_ns = None
        if self._held:
            return []
        events = self._told(self._end())
        self._held = True
        return events

    def commit(self) -> list[TurnEvent]:
        """The turn is over now, without a pause; no event if nothing was said in it."""
        events = self._told(self._end())
        self._held = False
        return events

    def cancel(self) -> list[TurnEvent]:
        """Forget what is being said, and release the button."""
        events: list[TurnEvent] = [Withdrawn(self._end_ns)] if self._is_told else []
        self._blocks, self._n_voiced = [], 0
        self._held = self._is_told = False
        return events

    def choose(self, mode: Mode) -> list[TurnEvent]:
        """Change the mode; what was being said ends by the old one."""
        events = self._told(self._end())
        self._mode, self._held = mode, False
        return events

    def control(self, control: Control | Silence) -> list[TurnEvent]:
        """Do what a client wants, or what silence ends, in order with the sound.

        Raises:
            ProtocolError: the button is pressed in another mode than push_to_talk.
            MediaError: what is played is not finite.
        """
        if isinstance(control, Choose):
            return self.choose(control.mode)
        if isinstance(control, Button):
            if control.do == "begin":
                return self.begin()
            if control.do == "commit":
                return self.commit()
            return self.cancel()
        if isinstance(control, Silence):
            return self._give_up() if self._is_too_long(control.gap_ns) else []
        self.play(control.chunk)
        return []

    def _lost(self, gap_ns: int) -> list[TurnEvent]:
        """No clip goes over a gap in the sound; while the button is held the turn does."""
        if self._is_too_long(gap_ns):
            return self._give_up()
        if not self._held:
            return self.flush()
        events = self._cut() if self._n_voiced > 0 and self._blocks else []
        return events + self._restart()

    def _is_too_long(self, gap_ns: int) -> bool:
        return gap_ns > (MAX_HELD_NS if self._held else MAX_GAP_NS)

    def _give_up(self) -> list[TurnEvent]:
        """Whoever spoke before the gap waits no longer, and a button was forgotten."""
        self._take_rest()
        events = self._withdrawn()
        self._held = False
        return events + self._restart()

    def _restart(self) -> list[TurnEvent]:
        self._sound, self._blocks, self._voiced = Blocks(), [], False
        if self._echo is not None:
            self._echo.lose_place()
        return []

    @property
    def _started(self) -> bool:
        """Whether it is speech, not a click; a button that is held is proof enough."""
        return self._n_voiced >= (1 if self._held else MIN_SPEECH_BLOCKS)

    @property
    def _paused(self) -> bool:
        """Whether a soft end was told; while the button is held there is none."""
        return self._started and self._n_quiet >= SOFT_END_BLOCKS and not self._held

    def _take(self, block: AudioChunk) -> list[TurnEvent]:
        let_go: list[TurnEvent] = []
        if self._is_forgotten(block):
            let_go, self._held = self._withdrawn(), False
        masked = False
        if self._echo is not None:
            block, masked = self._echo.clean(block)
        probability = self._probability(block.samples)
        self._voiced = probability >= (STOP if self._voiced else START) and not masked
        self._blocks.append(block)
        events = self._speech(block, probability) if self._voiced else self._silence()
        if len(self._blocks) == MAX_BLOCKS:
            # A soft end is a better place to end than a word that follows.
            events += self._end() if self._paused else self._cut()
        return let_go + self._told(events)

    def _is_forgotten(self, block: AudioChunk) -> bool:
        """Whether the button has been held for too long."""
        if not self._held:
            return False
        if self._held_since_ns is None:
            self._held_since_ns = block.capture_ns
        return block.capture_ns - self._held_since_ns > MAX_HELD_NS

    def _speech(self, block: AudioChunk, probability: float) -> list[TurnEvent]:
        events: list[TurnEvent] = [Resumed(block.capture_ns)] if self._paused else []
        if self._n_voiced == 0:
            self._onset_ns = max(block.capture_ns - ONSET_LAG_NS, self._blocks[0].capture_ns)
        if self._n_voiced == 0 or probability >= CERTAIN:
            self._end_ns = end_ns(block)
        was_started = self._started
        self._n_voiced += 1
        self._n_quiet = 0
        if self._started and not was_started:
            events.append(SpeechStarted(self._onset_ns, end_ns(block)))
        return events

    def _silence(self) -> list[TurnEvent]:
        self._n_quiet += 1
        if self._n_voiced == 0:
            del self._blocks[:-PRE_ROLL_BLOCKS]
        elif self._held:
            return []
        elif self._n_quiet >= MIN_SILENCE_BLOCKS:
            return self._end()
        elif self._paused and self._n_quiet == SOFT_END_BLOCKS:
            return [SoftEnd(self._utterance())]
        return []

    def _utterance(self) -> Utterance | None:
        """Up to the last voiced block and the post-roll; None if a cut gave that already."""
        n_until_pause = len(self._blocks) - self._n_quiet
        if n_until_pause <= 0:
            return None
        clip = joined(self._blocks[: n_until_pause + POST_ROLL_BLOCKS])
        return Utterance(clip, self._onset_ns, self._end_ns)

    def _cut(self) -> list[TurnEvent]:
        """The counts go on: what follows is speech already, however little it is."""
        clip = joined(self._blocks)
        cut = Utterance(clip, self._onset_ns, end_ns(clip))
        self._blocks, self._onset_ns, self._end_ns = [], end_ns(clip), end_ns(clip)
        return [Cut(cut)]

    def _end(self) -> list[TurnEvent]:
        """What lies behind the clip may be a next one's pre-roll."""
        events: list[TurnEvent] = []
        if self._started:
            utterance = self._utterance()
            events = [Ended(utterance, self._held)]
            if utterance is not None:
                del self._blocks[: len(self._blocks) - self._n_quiet + POST_ROLL_BLOCKS]
        del self._blocks[:-PRE_ROLL_BLOCKS]
        self._n_voiced = 0
        return events

    def _told(self, events: list[TurnEvent]) -> list[TurnEvent]:
        """As it is for the mode: speech that takes no turn is only overheard."""
        if self._mode != "open" and not self._held:
            return _overheard(events)
        for event in events:
            if isinstance(event, SpeechStarted | Ended):
                self._is_told = isinstance(event, SpeechStarted)
        return events

    def _withdrawn(self) -> list[TurnEvent]:
        """What was being said takes no turn any more, and is overheard."""
        told: list[TurnEvent] = [Withdrawn(self._end_ns)] if self._is_told else []
        self._is_told = False
        return told + _overheard(self._end())


def _overheard(events: list[TurnEvent]) -> list[TurnEvent]:
    given = [event.utterance for event in events if isinstance(event, Cut | Ended)]
    return [Overheard(utterance) for utterance in given if utterance is not None]


class UtteranceDetector:
    """Speech only, each utterance as one clip, whatever turn it takes."""

    def __init__(self, probability: Callable[[Float32], float] | None = None) -> None:
        """Wait for speech; `probability` as in `TurnDetector`."""
        self._turns = TurnDetector("open", probability)

    def push(self, chunk: AudioChunk) -> list[AudioChunk]:
        """Take the next chunk, of any length; the utterances that ended in it.

        Raises:
            MediaError: a sample is not a finite number.
        """
        return _clips(self._turns.push(chunk))

    def flush(self) -> list[AudioChunk]:
        """The utterance that the end of the sound cut short."""
        return _clips(self._turns.flush())

    @property
    def mode(self) -> Mode:
        """No speech takes a turn."""
        return "typed"

    def control(self, control: Control | Silence) -> list[AudioChunk]:
        """As `TurnDetector.control`; the utterance that it ends."""
        return _clips(self._turns.control(control))


def _clips(events: list[TurnEvent]) -> list[AudioChunk]:
    given = [event.utterance for event in events if isinstance(event, Cut | Ended | Overheard)]
    return [utterance.clip for utterance in given if utterance is not None]
