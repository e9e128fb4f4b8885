r"""Run the real loop for simulated hours on a board's costs, and print what its users would feel.

The loop, the context, the rebases and the budget are the runtime's own; the engine charges what
each operation costs to a virtual clock (edge/engines/simulated.py: every cost with its source), and
the world is scripted from a seed: frames, utterances, questions and, with --faults, what goes
wrong; --cameras, --triggers, --notes, --open and --reloads add the rest of a robot's life, and
then what clients were told is held against what happened (scripts/account.py).
Everything printed is simulated, nothing is measured on a board.

Usage:
    python scripts/simulate.py --board thor --hours 24
    python scripts/simulate.py --board agx-orin-64 --fps 4 --faults --seed 7 --picture latency.svg
    python scripts/simulate.py --faults --seeds 1000 --hours 0.02   # checks each step
    python scripts/simulate.py --hours 24 --cameras 2 --triggers 4 --notes 256 --open --reloads \
        --faults
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import itertools
import json
import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from account import Account, Wait, Waits
from published_config import CONFIG, GENERATION_CONFIG

from build_engine.chart import curves
from edge.clock import NS_PER_S, VirtualClock
from edge.config import Config, for_model, load_config, without_restart
from edge.engines.simulated import COSTS, SimulatedEngine
from edge.errors import CapacityError, EngineError, ProtocolError
from edge.model.prompt import ChatTemplate
from edge.model.sampling import Sampling
from edge.model.spec import model_spec
from edge.model.tokenizer import Tokenizer
from edge.senses.sound import BLOCK_NS, BLOCK_SAMPLES
from edge.senses.turn_events import Button, TurnEvent
from edge.senses.turns import TurnDetector
from edge.session.budget import LADDER, Degraded
from edge.session.health import BoardHealth
from edge.session.live_prompt import LivePrompt
from edge.session.loop import LiveLoop
from edge.session.perceive import Listener, Seen
from edge.session.sense import Sense, audio_sense
from edge.session.slot import Perceived
from edge.session.triggers import Trigger
from edge.session.turn import AnswerEvent, Done, Failed, Message, Question, Turn, YesNo
from edge.types import AudioChunk, Evidence, Stages

TOKENIZER = Path(__file__).resolve().parent.parent / "tests/assets/tiny_omni"
TEXT_TOKENS = 14
"""Words around a tubelet or a clip, assumed."""
UTTERANCE_EVERY_S, QUESTION_EVERY_S = 30.0, 60.0
MEL_FRAMES_PER_S = 100
DEADLINE_S = 1.0
"""Of a turn's first token."""
FAULTS = (
    *("unplugged", "stall", "clock", "overflow", "engine", "client", "heat", "memory", "power"),
)
WARM, HOT = (
    BoardHealth(70.0, 95.0, memory_share=0.6, power_w=30.0, max_power_w=40.0),
    BoardHealth(97.0, 95.0, is_throttled=True, memory_share=0.6, power_w=38.0, max_power_w=40.0),
)
FAULT_EVERY_S = 20.0
PICTURE_POINTS = 2000
MAX_UTTERANCES = 300
"""Of the world's may wait."""
CHUNK_BLOCKS = 3
"""Of 32 ms: a microphone that is heard gives chunks of 0.1 s."""
SILENCE = np.zeros(CHUNK_BLOCKS * BLOCK_SAMPLES, np.float32)
TRUE_EVERY_S, RELOAD_EVERY_S, WATCHER_EVERY_S = 120.0, 600.0, 1200.0
"""What triggers watch for is the case · settings are read again · one who watches goes, and another
comes."""
MAX_RATIO = 1.5
"""Of how often two cameras are served in a day."""
MAX_OTHER_S = 0.001
"""A trigger that is due waits for nobody else than answers, other triggers, and one step."""


@dataclass(frozen=True, slots=True)
class Life:
    """What a robot has besides a camera, utterances and typed questions."""

    n_cameras: int = 1
    n_triggers: int = 0
    notes_tokens: int = 0
    is_open: bool = False
    """Its sound is cut into turns, and who speaks is answered."""
    reloads: bool = False

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """As a file holds them."""
        if not self.is_open:
            return {"context": {"notes_tokens": self.notes_tokens}}
        return {
            "context": {"notes_tokens": self.notes_tokens},
            "perception": {"listen": "utterances"},
            "turns": {"mode": "open"},
            "answer": {"max_tokens": 60},
        }


@dataclass(frozen=True, slots=True)
class Item:
    """A frame or an utterance: when it was captured and how long it is."""

    capture_ns: int
    duration_s: float = 0.0


class Eye:
    """Makes segments of frames at the board's cost, as the runtime's Watcher does."""

    def __init__(self, engine: SimulatedEngine, clock: VirtualClock, name: str = "eye") -> None:
        self._engine, self._clock, self.name = engine, clock, name
        self._frames: list[Item] = []
        self.n_waiting = 0
        self.rung = LADDER[0]

    def wants(self, n: int) -> bool:
        """Whether the source's frame number `n` is taken on this rung."""
        return self.rung.one_frame_in > 0 and n % self.rung.one_frame_in == 0

    def start_again(self) -> None:
        """Nothing: every tubelet stands by itself."""

    def take(self, frame: Item) -> list[TurnEvent]:
        """Take a frame, which may complete a tubelet."""
        self._frames.append(frame)
        self.n_waiting = len(self._frames) // self._engine.spec.vision.tubelet_frames
        return []

    def encode(self) -> Seen:
        """The tubelet as a segment."""
        vision = self._engine.spec.vision
        frames, self._frames, self.n_waiting = self._frames, [], 0
        taken_ns = self._clock.now_ns()
        n_patches = int(vision.video_target_patches * self.rung.patch_share)
        patches = np.broadcast_to(np.float32(0), (1, n_patches, 1))
        media = self._engine.encode_tubelets(patches, (1, n_patches))[0]
        kept = media[: int(len(media) * self.rung.token_share)]
        return _seen(self.name, "video", kept, frames[0], frames[-1], taken_ns, self._clock)

    def flush(self) -> list[TurnEvent]:
        """Nothing: the world does not end."""
        return []


class Ear:
    """Makes segments of utterances at the board's cost."""

    name = "ear"

    def __init__(self, engine: SimulatedEngine, clock: VirtualClock) -> None:
        self._engine, self._clock = engine, clock
        self._clips: deque[Item] = deque()
        self.rung = LADDER[0]

    @property
    def n_waiting(self) -> int:
        """Utterances that are not encoded."""
        return len(self._clips)

    def wants(self, _n: int) -> bool:
        """Whether sound is taken on this rung."""
        return self.rung.sound

    def start_again(self) -> None:
        """Nothing: every clip stands by itself."""

    def take(self, clip: Item) -> list[TurnEvent]:
        """Take an utterance."""
        self._clips.append(clip)
        return []

    def encode(self) -> Seen:
        """The oldest utterance as a segment."""
        clip = self._clips.popleft()
        taken_ns = self._clock.now_ns()
        mel = np.broadcast_to(np.float32(0), (int(clip.duration_s * MEL_FRAMES_PER_S), 1))
        media = self._engine.encode_audio(mel)
        return _seen(self.name, "audio", media, clip, clip, taken_ns, self._clock)

    def flush(self) -> list[TurnEvent]:
        """Nothing: the world does not end."""
        return []


def _seen(
    source: str, modality: Any, media: Any, first: Item, last: Item, taken_ns: int, clock: Any
) -> Seen:
    rows = np.zeros((len(media) + TEXT_TOKENS, 1), np.float32)
    evidence = Evidence(source, first.capture_ns, last.capture_ns)
    times = (last.capture_ns, taken_ns, taken_ns, clock.now_ns())
    return Seen(Perceived(modality, rows, evidence), Stages(modality, *times), last.capture_ns)


@dataclass
class World:
    """The scripted world, the loop in it, and what was seen of them."""

    board: str
    fps: float
    seed: int
    faults: bool
    config: Config = field(default_factory=lambda: load_config(None))
    life: Life = field(default_factory=Life)

    def __post_init__(self) -> None:
        if self.life != Life():
            self.config = load_config(None, self.life.settings)
        self.rng = np.random.default_rng(self.seed)
        self.clock = VirtualClock()
        self.spec = model_spec(CONFIG, GENERATION_CONFIG)
        self.config = self._fitted(self.config)
        self.tokenizer, self.template = Tokenizer(TOKENIZER), ChatTemplate(TOKENIZER)
        self.first_token_s: list[tuple[float, float]] = []
        self.glass_to_state_s: list[tuple[float, float]] = []
        self.steps: list[Degraded] = []
        self.n_turns = self.n_refused = self.n_restarts = self.n_rebases = self.n_dropped = 0
        self.most_tokens = 0
        self.waiting: dict[int, Turn] = {}
        self.busy_ms = 0.0
        self.health = WARM
        self.served: Counter[str] = Counter()
        self.wire: Counter[str] = Counter()
        self.differences: list[str] = []
        self.longest_wait = self.worst_wait = Wait()
        self.n_judged = self.n_reloads = self.rested_ms = 0
        self._order = itertools.count()
        self._events: list[tuple[int, int, Callable[[], object]]] = []
        self._camera_in, self._skew_ns = True, 0
        self._gone = ""  # the sense that is unplugged, where there are several
        self._voiced: deque[tuple[int, int]] = deque()  # when somebody speaks, ns
        self._begin()

    def _fitted(self, config: Config) -> Config:
        decoder = self.spec.decoder
        return for_model(config, decoder.trained_tokens, decoder.max_tokens)

    def _begin(self) -> None:
        """Start the service: at first, and after an engine error as its supervisor would."""
        self.engine = SimulatedEngine(COSTS[self.board], self.clock, self.spec)
        ear = Ear(self.engine, self.clock)
        self.sound: Sense[Any] = Sense("audio", ear, MAX_UTTERANCES, hears=True)
        if self.life.is_open:
            detector = TurnDetector(self.config.turns.mode, lambda samples: float(samples[0]))
            parts = self.engine, self.tokenizer, self.clock
            self.sound = audio_sense(Listener(*parts, detector, name="microphone"))
        self.sights = [self._sight(n) for n in range(self.life.n_cameras)]
        self.sight = self.sights[0]
        prompt = LivePrompt(self.tokenizer, self.template, "")
        senses = (self.sound, *self.sights)
        self.loop = LiveLoop(
            *(self.engine, prompt, self.config, self.clock, "", senses),
            start_ns=self.clock.now_ns(),
            health=lambda: self.health,
        )
        self.loop.observe(self._heard)
        self.account, self.waits = Account(self.loop), Waits(self.loop)
        self.max_waiting = self.config.socket.max_waiting
        self.loop._triggers._yes_no = YesNo((0,), (1,))  # the engine knows two tokens
        for n in range(self.life.n_triggers):
            self._watch(n)

    def _sight(self, n: int) -> Sense[Item]:
        name = f"camera_{n + 1}" if self.life.n_cameras > 1 else "video"
        eye = Eye(self.engine, self.clock, name)
        return Sense(name, eye, self.spec.vision.tubelet_frames)

    def _watch(self, n: int) -> None:
        """A client wants to be told of something."""
        about = ("any", "video", "audio")[n % 3]
        trigger = Trigger(f"Is it {n}?", modality=about, period_s=1.0 + n % 4)  # type: ignore[arg-type]
        self.loop.triggers.create(trigger)

    def run(self, duration_s: float, look: Callable[[World], object] = id) -> None:
        """Let time pass.

        Args:
            look: called after every step in which the loop did something.
        """
        start_ns = self.clock.now_ns()
        for n in range(self.life.n_cameras):
            self._schedule(start_ns, self._frames(start_ns, n))
        self._schedule(start_ns, self._questions(start_ns))
        if self.life.is_open:
            self._schedule(start_ns, self._sounds(start_ns))
            self._schedule(start_ns, self._talk(start_ns))
        else:
            self._schedule(start_ns, self._utterances(start_ns))
        if self.life.n_triggers:
            self._schedule(start_ns, self._truths(start_ns))
            self._schedule(start_ns, self._watchers(start_ns))
        if self.life.reloads:
            self._schedule(start_ns, self._reloads(start_ns))
        self._schedule(start_ns, self._looks(start_ns))
        if self.faults:
            self._schedule(start_ns, self._things_going_wrong(start_ns))
        end_ns = start_ns + int(duration_s * NS_PER_S)
        while self.clock.now_ns() < end_ns:
            while self._events[0][0] <= self.clock.now_ns():
                heapq.heappop(self._events)[2]()
            self.waits.begin()
            try:
                busy = self.loop.step()
            except EngineError:
                self._close(broken=True)
                self._begin()
                self.n_restarts += 1
                continue
            self.waits.end()
            if busy:
                look(self)
                self.most_tokens = max(self.most_tokens, self.loop._context.n_tokens)
            else:
                self._sleep()
        self._close()

    def _sleep(self) -> None:
        """Until something happens in the world, or the loop wants to go on."""
        until_ns, wait_s = self._events[0][0], self.loop._wait_s()
        if wait_s is not None:
            assert wait_s > 0, "the loop has nothing to do and may not sleep"
            until_ns = min(until_ns, self.clock.now_ns() + int(wait_s * NS_PER_S) + 1)
        self.clock.sleep_until(until_ns)

    def _close(self, *, broken: bool = False) -> None:
        """The service ends: those who wait are told."""
        self.loop.stop()
        with contextlib.suppress(
            *[EngineError] * broken
        ):  # it cannot even leave things as they were
            self.loop.run()
        self.account.close(broken=broken)
        self.waits.close()
        counters = self.loop.status().counters
        self.n_rebases += counters["rebases"]
        self.n_dropped += sum(n for name, n in counters.items() if name.endswith("_dropped"))
        self.busy_ms += self.engine.busy_ms
        self.served.update({sight.name: self.account.encoded[sight.name] for sight in self.sights})
        self.wire += self.account.wire
        self.differences += self.account.differences
        self.n_judged += self.waits.n_judged
        self.rested_ms += counters.get("triggers_rested_ms", 0)
        waits = self.longest_wait, self.waits.longest
        self.longest_wait = max(waits, key=lambda wait: wait.seconds)
        self.worst_wait = max(self.worst_wait, self.waits.worst, key=lambda wait: wait.other_s)

    def _heard(self, event: object) -> None:
        if isinstance(event, Stages) and event.modality == "video":
            passed_s = (event.prefilled_ns - event.captured_ns) / NS_PER_S
            self.glass_to_state_s.append((event.captured_ns / NS_PER_S, passed_s))
        elif isinstance(event, Degraded):
            self.steps.append(event)

    # What happens in the world: each generator does something and gives the time of the next.

    def _schedule(self, at_ns: int, happening: Iterator[int]) -> None:
        def go_on() -> None:
            self._schedule(next(happening), happening)

        heapq.heappush(self._events, (at_ns, next(self._order), go_on))

    def _frames(self, at_ns: int, camera: int) -> Iterator[int]:
        for n in itertools.count():
            sight = self.sights[camera]
            if self._camera_in and sight.name != self._gone:
                sight.put(Item(self.clock.now_ns() + self._skew_ns if n else at_ns))
            yield at_ns + int((n + 1) * NS_PER_S / self.fps)

    def _sounds(self, at_ns: int) -> Iterator[int]:
        """What a microphone gives: of each block the first sample says whether it is speech."""
        while True:
            chunk_ns, at_ns = at_ns, at_ns + CHUNK_BLOCKS * BLOCK_NS
            yield at_ns
            while self._voiced and self._voiced[0][1] <= chunk_ns:
                self._voiced.popleft()
            samples = SILENCE
            if self._voiced and self._voiced[0][0] < at_ns:
                samples = SILENCE.copy()
                for block in range(CHUNK_BLOCKS):
                    block_ns = chunk_ns + block * BLOCK_NS
                    is_voiced = any(start <= block_ns < end for start, end in self._voiced)
                    samples[block * BLOCK_SAMPLES] = 0.9 * is_voiced
            if self.sound.name != self._gone:
                self.sound.put(AudioChunk(samples, chunk_ns, "microphone"))

    def _talk(self, at_ns: int) -> Iterator[int]:
        """Somebody speaks, with pauses of which some are taken for the end, and with the button."""
        while True:
            at_ns += int(self.rng.exponential(UTTERANCE_EVERY_S) * NS_PER_S)
            yield at_ns
            self._press("begin")
            while True:
                start_ns = at_ns
                at_ns += int(self.rng.uniform(0.2, 6.0) * NS_PER_S)
                self._voiced.append((start_ns, at_ns))
                if self.rng.random() > 0.3:
                    break
                at_ns += int(self.rng.uniform(0.1, 0.6) * NS_PER_S)
            yield at_ns
            what = str(self.rng.choice(("commit", "commit", "cancel", "forgotten")))
            if what != "forgotten":
                self._press(what)

    def _press(self, what: Any) -> None:
        with contextlib.suppress(CapacityError, ProtocolError):  # in another mode there is none
            self.loop.control(Button(what))

    def _truths(self, at_ns: int) -> Iterator[int]:
        """What triggers watch for begins to be the case, and ends."""
        while True:
            for logits, mean_s in (([0.0, 1.0], TRUE_EVERY_S), ([1.0, 0.0], TRUE_EVERY_S / 8)):
                self.engine._logits = np.array(logits, np.float32)
                at_ns += int(self.rng.exponential(mean_s) * NS_PER_S)
                yield at_ns

    def _watchers(self, at_ns: int) -> Iterator[int]:
        for n in itertools.count(self.life.n_triggers):
            at_ns += int(self.rng.exponential(WATCHER_EVERY_S) * NS_PER_S)
            yield at_ns
            names = [status.id for status in self.loop.triggers.entries()]
            self.loop.triggers.delete(str(self.rng.choice(names)))
            self._watch(n)

    def _reloads(self, at_ns: int) -> Iterator[int]:
        """As the service does it at SIGHUP."""
        while True:
            at_ns += int(self.rng.exponential(RELOAD_EVERY_S) * NS_PER_S)
            yield at_ns
            settings = self.life.settings
            settings["answer"] = {"max_tokens": int(self.rng.integers(5, 80))}
            settings["socket"] = {"max_waiting": int(self.rng.integers(4, 12))}
            settings["context"] = {**settings["context"], "keep_tokens": 2000}  # waits
            if self.life.is_open:
                modes = "open", "open", "push_to_talk", "typed"
                settings["turns"] = {"mode": str(self.rng.choice(modes))}
            wanted = self._fitted(load_config(None, settings))
            taken, _ = without_restart(self.config, wanted, self._fitted)
            with contextlib.suppress(CapacityError):  # then nothing changes
                self.loop.change(taken)
                self.config = taken
                self.max_waiting = max(self.max_waiting, taken.socket.max_waiting)
                self.n_reloads += 1

    def _looks(self, at_ns: int) -> Iterator[int]:
        while True:
            at_ns += NS_PER_S
            yield at_ns
            self.account.look()

    def _utterances(self, at_ns: int) -> Iterator[int]:
        while True:
            at_ns += int(self.rng.exponential(UTTERANCE_EVERY_S) * NS_PER_S)
            yield at_ns
            self.sound.put(Item(at_ns, float(self.rng.uniform(0.5, 6.0))))

    def _questions(self, at_ns: int) -> Iterator[int]:
        while True:
            at_ns += int(self.rng.exponential(QUESTION_EVERY_S) * NS_PER_S)
            yield at_ns
            self.ask(at_ns, int(self.rng.integers(5, 60)))

    def ask(self, at_ns: int, n_tokens: int) -> None:
        """A client asks."""
        question = Question((Message("user", "What do you see?"),), Sampling(), n_tokens)
        number = self.n_turns
        self.n_turns += 1
        note = self.account.asked()

        def deliver(event: AnswerEvent) -> None:
            note(event)
            ended = isinstance(event, Done | Failed)
            if ended and self.waiting.pop(number, None) is None:
                raise AssertionError(f"turn {number} ended twice")
            if isinstance(event, Done):
                since_s = (event.timeline.first_token_ns - at_ns) / NS_PER_S
                self.first_token_s.append((at_ns / NS_PER_S, since_s))
            elif isinstance(event, Failed):
                self.n_refused += 1

        try:
            self.waiting[number] = self.loop.ask(question, deliver, at_ns)
        except CapacityError:
            self.account.refused()
            self.n_refused += 1

    def _things_going_wrong(self, at_ns: int) -> Iterator[int]:
        while True:
            at_ns += int(self.rng.exponential(FAULT_EVERY_S) * NS_PER_S)
            yield at_ns
            kind = str(self.rng.choice(FAULTS))
            length_s = float(np.exp(self.rng.uniform(np.log(0.3), np.log(30))))
            getattr(self, f"_{kind}")(length_s)
            yield at_ns + int(length_s * NS_PER_S)
            self._camera_in, self.engine.slowdown, self.health = True, 1.0, WARM
            self._gone = ""

    def _unplugged(self, _length_s: float) -> None:
        if self.life == Life():
            self._camera_in = False
        else:
            self._gone = str(self.rng.choice([sense.name for sense in self.loop._senses]))

    def _stall(self, length_s: float) -> None:
        self.engine.stall_ms = 1000 * length_s

    def _clock(self, length_s: float) -> None:
        self._skew_ns = int(self.rng.choice([-1, 1]) * length_s * NS_PER_S)

    def _overflow(self, length_s: float) -> None:
        if self.life.is_open:  # what comes meanwhile is more than waits
            self._stall(30 + length_s)
            return
        for _ in range(MAX_UTTERANCES + int(length_s)):
            self.sound.put(Item(self.clock.now_ns(), 0.5))

    def _engine(self, _length_s: float) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise EngineError("engine", "gave NaN", "restart")

        self.engine._charge = fail  # type: ignore[method-assign]

    def _client(self, length_s: float) -> None:
        for _ in range(12):  # more than may wait; some of them vanish
            self.ask(self.clock.now_ns(), int(self.rng.integers(5, 60)))
        for turn in list(self.waiting.values())[:: 1 + int(length_s)]:
            turn.cancel()

    def _heat(self, length_s: float) -> None:
        self.engine.slowdown, self.health = 1.0 + length_s / 10, HOT

    def _memory(self, _length_s: float) -> None:
        self.health = replace(WARM, memory_share=0.97)

    def _power(self, _length_s: float) -> None:
        self.health = replace(WARM, power_w=44.0)


def check(world: World) -> None:
    """What must hold after every step, whatever goes wrong.

    Raises:
        AssertionError: it does not.
    """
    loop = world.loop
    context, status = loop._context, loop.status()
    entered = sum(segment.n_tokens for segment in context.ledger)
    assert entered == context.n_tokens, f"ledger {entered}, state {context.n_tokens}"
    assert context.n_tokens <= context.max_tokens, f"{context.n_tokens} tokens"
    assert len(world.waiting) <= world.max_waiting + 1, "more wait than may"
    for sense in (sense.name for sense in loop._senses):
        received, lost = status.counters[f"{sense}_received"], status.counters[f"{sense}_dropped"]
        assert lost + status.counters[f"{sense}_skipped"] <= received, f"{sense}: {status.counters}"
    assert not world.account.differences, world.account.differences[0]


def try_seeds(arguments: argparse.Namespace) -> None:
    """Run many worlds; ends at the first that breaks what must hold, and says its seed."""
    totals: Counter[str] = Counter()
    for seed in tqdm(range(arguments.seed, arguments.seed + arguments.seeds), disable=None):
        world = World(
            arguments.board, arguments.fps, seed, arguments.faults, life=life_of(arguments)
        )
        try:
            world.run(3600 * arguments.hours, check)
            assert not world.waiting, f"{len(world.waiting)} turns never ended"
            assert not (found := problems(world)), found[0]
        except AssertionError as error:
            sys.exit(f"simulate: seed {seed}: {error}")
        late = sum(s > DEADLINE_S for _, s in world.first_token_s)
        totals += Counter(turns=world.n_turns, refused=world.n_refused, late=late)
        totals += Counter(answered=len(world.first_token_s))
        totals += Counter(restarts=world.n_restarts, rebases=world.n_rebases)
        totals += Counter(budget_steps=len(world.steps), dropped=world.n_dropped)
    print(json.dumps({"seeds": arguments.seeds, "hours_each": arguments.hours, **totals}))


def problems(world: World, *, is_long: bool = False) -> list[str]:
    """What must hold of the whole of a world, as sentences that say that it does not.

    Args:
        is_long: so long that no camera has been away for a larger part of it than another.
    """
    found = list(world.differences)
    wait = world.worst_wait
    if wait.other_s > MAX_OTHER_S:
        found.append(f"{wait.trigger} waited for {wait.other_s:.3f} s for nobody who goes first")
    served = world.served.values()
    if is_long and len(served) > 1 and max(served) > MAX_RATIO * min(served):
        found.append(f"cameras were not served alike: {dict(world.served)}")
    return found


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p90 and p99 in ms."""
    if not values:
        return {}
    p = np.percentile(values, [50, 90, 99])
    return {f"p{q}_ms": round(1000 * float(v), 1) for q, v in zip((50, 90, 99), p, strict=True)}


def report(world: World, simulated_s: float, seconds: float) -> dict[str, Any]:
    """What is printed."""
    late = [s for _, s in world.first_token_s if s > DEADLINE_S]
    return {
        "board": world.board,
        "fps": world.fps,
        "seed": world.seed,
        "simulated_hours": round(simulated_s / 3600, 3),
        "seconds": round(seconds, 1),
        "turns": world.n_turns,
        "refused": world.n_refused,
        "within_deadline": round(1 - len(late) / max(1, len(world.first_token_s)), 5),
        "first_token": percentiles([s for _, s in world.first_token_s]),
        "worst_first_token_ms": round(1000 * max((s for _, s in world.first_token_s), default=0)),
        "glass_to_state": percentiles([s for _, s in world.glass_to_state_s]),
        "dropped": world.n_dropped,
        "rebases": world.n_rebases,
        "restarts": world.n_restarts,
        "budget_steps": len(world.steps),
        "rung": world.loop.degraded[-1].rung.name if world.loop.degraded else LADDER[0].name,
        "most_tokens": world.most_tokens,
        "engine_busy": round(world.busy_ms / 1000 / simulated_s, 4),
    }


def report_life(world: World) -> dict[str, Any]:
    """What is printed besides, of a life with more than a camera in it."""
    wait, served = world.longest_wait, world.served
    return {
        "served": dict(served),
        "served_ratio": round(max(served.values()) / max(1, min(served.values())), 3),
        "judgements": world.n_judged,
        "rested_s": round(world.rested_ms / 1000),
        "longest_without_judgement_s": round(wait.seconds, 2),
        "answer_in_its_way_s": round(wait.longest_answer_s, 2),
        "made_of_s": {kind: round(s, 2) for kind, s in wait.parts.items()},
        "worst_unexplained_s": round(world.worst_wait.other_s, 3),
        "reloads": world.n_reloads,
        "told": dict(sorted(world.wire.items())),
        "differences": len(world.differences),
    }


def life_of(arguments: argparse.Namespace) -> Life:
    """What the command line wants of it."""
    return Life(
        n_cameras=arguments.cameras,
        n_triggers=arguments.triggers,
        notes_tokens=arguments.notes,
        is_open=arguments.open,
        reloads=arguments.reloads,
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--board", choices=COSTS, default="thor")
    parser.add_argument("--fps", type=float, default=2.0)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", action="store_true", help="let things go wrong")
    parser.add_argument("--cameras", type=int, default=1)
    parser.add_argument("--triggers", type=int, default=0, help="conditions that are watched for")
    parser.add_argument("--notes", type=int, default=0, metavar="TOKENS", help="before a rebase")
    parser.add_argument("--open", action="store_true", help="who speaks is answered")
    parser.add_argument("--reloads", action="store_true", help="settings change meanwhile")
    parser.add_argument("--picture", type=Path, help="write the latencies over time as an SVG")
    parser.add_argument("--json", action="store_true", help="one JSON line for machines")
    parser.add_argument("--seeds", type=int, metavar="N", help="N worlds, from --seed on")
    arguments = parser.parse_args()
    if arguments.seeds:
        logging.disable()
        try_seeds(arguments)
        return
    life = life_of(arguments)
    world = World(arguments.board, arguments.fps, arguments.seed, arguments.faults, life=life)
    began = time.monotonic()
    world.run(3600 * arguments.hours)
    found = report(world, 3600 * arguments.hours, time.monotonic() - began)
    if life != Life():
        found |= report_life(world)
    if arguments.picture:
        lines = {
            "first token, s": world.first_token_s,
            "glass to state, s": world.glass_to_state_s[
                :: max(1, len(world.glass_to_state_s) // 2000)
            ],
        }
        title = f"simulated: {arguments.board}, {arguments.fps} frames/s"
        arguments.picture.write_text(curves(title, lines))
    if arguments.json:
        print(json.dumps(found))
    else:
        print_found(arguments.board, found)
    if wrong := problems(world, is_long=arguments.hours >= 1):
        sys.exit("simulate: " + "; ".join(wrong[:5]))


def print_found(board: str, found: dict[str, Any]) -> None:
    """For a person."""
    print("simulated, not measured; costs of the engine:")
    for name in ("see", "hear", "prefill", "decode", "past", "snapshot"):
        cost = getattr(COSTS[board], name)
        ms = f"{cost.floor_ms:8.3g} ms + {cost.per_token_ms:7.3g} a token"
        of_each = ", of each token of the context" if name == "past" else ""
        print(f"  {name:9}{ms}   {cost.source}{of_each}")
    for name, value in found.items():
        print(f"{name:16} {value}")


if __name__ == "__main__":
    main()
