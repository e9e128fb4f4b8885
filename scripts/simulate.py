"""Run the real loop for simulated hours on a board's costs, and print what its users would feel.

The loop, the context, the rebases and the budget are the runtime's own; the engine charges what
each operation costs to a virtual clock (edge/engines/simulated.py: every cost with its source), and
the world is scripted from a seed: frames, utterances, questions and, with --faults, what goes
wrong.
Everything printed is simulated, nothing is measured on a board.

Usage:
    python scripts/simulate.py --board thor --hours 24
    python scripts/simulate.py --board agx-orin-64 --fps 4 --faults --seed 7 --picture latency.svg
    python scripts/simulate.py --faults --seeds 1000 --hours 0.02   # checks each step
"""

from __future__ import annotations

import argparse
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

from published_config import CONFIG, GENERATION_CONFIG

from build_engine.chart import curves
from edge.clock import NS_PER_S, VirtualClock
from edge.config import Config, for_model, load_config
from edge.engines.simulated import COSTS, SimulatedEngine
from edge.errors import CapacityError, EngineError
from edge.model.prompt import ChatTemplate
from edge.model.sampling import Sampling
from edge.model.spec import model_spec
from edge.model.tokenizer import Tokenizer
from edge.senses.turn_events import TurnEvent
from edge.session.budget import LADDER, Degraded
from edge.session.health import BoardHealth
from edge.session.live_prompt import LivePrompt
from edge.session.loop import LiveLoop
from edge.session.perceive import Seen
from edge.session.sense import Sense
from edge.session.slot import Perceived
from edge.session.turn import AnswerEvent, Done, Failed, Message, Question, Turn
from edge.types import Evidence, Stages

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


@dataclass(frozen=True, slots=True)
class Item:
    """A frame or an utterance: when it was captured and how long it is."""

    capture_ns: int
    duration_s: float = 0.0


class Eye:
    """Makes segments of frames at the board's cost, as the runtime's Watcher does."""

    name = "eye"

    def __init__(self, engine: SimulatedEngine, clock: VirtualClock) -> None:
        self._engine, self._clock = engine, clock
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
        return _seen("video", kept, frames[0], frames[-1], taken_ns, self._clock)

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
        return _seen("audio", media, clip, clip, taken_ns, self._clock)

    def flush(self) -> list[TurnEvent]:
        """Nothing: the world does not end."""
        return []


def _seen(modality: Any, media: Any, first: Item, last: Item, taken_ns: int, clock: Any) -> Seen:
    rows = np.zeros((len(media) + TEXT_TOKENS, 1), np.float32)
    evidence = Evidence("world", first.capture_ns, last.capture_ns)
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

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.clock = VirtualClock()
        self.spec = model_spec(CONFIG, GENERATION_CONFIG)
        decoder = self.spec.decoder
        self.config = for_model(self.config, decoder.trained_tokens, decoder.max_tokens)
        self.tokenizer, self.template = Tokenizer(TOKENIZER), ChatTemplate(TOKENIZER)
        self.first_token_s: list[tuple[float, float]] = []
        self.glass_to_state_s: list[tuple[float, float]] = []
        self.steps: list[Degraded] = []
        self.n_turns = self.n_refused = self.n_restarts = self.n_rebases = self.n_dropped = 0
        self.most_tokens = 0
        self.waiting: dict[int, Turn] = {}
        self.busy_ms = 0.0
        self.health = WARM
        self._order = itertools.count()
        self._events: list[tuple[int, int, Callable[[], object]]] = []
        self._camera_in, self._skew_ns = True, 0
        self._begin()

    def _begin(self) -> None:
        """Start the service: at first, and after an engine error as its supervisor would."""
        self.engine = SimulatedEngine(COSTS[self.board], self.clock, self.spec)
        ear = Ear(self.engine, self.clock)
        self.sound: Sense[Item] = Sense("audio", ear, MAX_UTTERANCES, hears=True)
        n_frames = self.spec.vision.tubelet_frames
        self.sight: Sense[Item] = Sense("video", Eye(self.engine, self.clock), n_frames)
        prompt = LivePrompt(self.tokenizer, self.template, "")
        senses = (self.sound, self.sight)
        self.loop = LiveLoop(
            *(self.engine, prompt, self.config, self.clock, "", senses),
            start_ns=self.clock.now_ns(),
            health=lambda: self.health,
        )
        self.loop.observe(self._heard)

    def run(self, duration_s: float, look: Callable[[World], object] = id) -> None:
        """Let time pass.

        Args:
            look: called after every step in which the loop did something.
        """
        start_ns = self.clock.now_ns()
        self._schedule(start_ns, self._frames(start_ns))
        self._schedule(start_ns, self._utterances(start_ns))
        self._schedule(start_ns, self._questions(start_ns))
        if self.faults:
            self._schedule(start_ns, self._things_going_wrong(start_ns))
        end_ns = start_ns + int(duration_s * NS_PER_S)
        while self.clock.now_ns() < end_ns:
            while self._events[0][0] <= self.clock.now_ns():
                heapq.heappop(self._events)[2]()
            try:
                busy = self.loop.step()
            except EngineError:
                self._close()
                self._begin()
                self.n_restarts += 1
                continue
            if busy:
                look(self)
                self.most_tokens = max(self.most_tokens, self.loop._context.n_tokens)
            else:
                self.clock.sleep_until(self._events[0][0])
        self._close()

    def _close(self) -> None:
        """The service ends: those who wait are told."""
        counters = self.loop.status().counters
        self.n_rebases += counters["rebases"]
        self.n_dropped += counters["video_dropped"] + counters["audio_dropped"]
        self.busy_ms += self.engine.busy_ms
        self.loop.stop()
        self.loop.run()

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

    def _frames(self, at_ns: int) -> Iterator[int]:
        for n in itertools.count():
            if self._camera_in:
                self.sight.put(Item(self.clock.now_ns() + self._skew_ns if n else at_ns))
            yield at_ns + int((n + 1) * NS_PER_S / self.fps)

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

        def deliver(event: AnswerEvent) -> None:
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

    def _unplugged(self, _length_s: float) -> None:
        self._camera_in = False

    def _stall(self, length_s: float) -> None:
        self.engine.stall_ms = 1000 * length_s

    def _clock(self, length_s: float) -> None:
        self._skew_ns = int(self.rng.choice([-1, 1]) * length_s * NS_PER_S)

    def _overflow(self, length_s: float) -> None:
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
    assert len(world.waiting) <= world.config.socket.max_waiting + 1, "more wait than may"
    for sense in ("audio", "video"):
        received, lost = status.counters[f"{sense}_received"], status.counters[f"{sense}_dropped"]
        assert lost + status.counters[f"{sense}_skipped"] <= received, f"{sense}: {status.counters}"


def try_seeds(arguments: argparse.Namespace) -> None:
    """Run many worlds; ends at the first that breaks what must hold, and says its seed."""
    totals: Counter[str] = Counter()
    for seed in tqdm(range(arguments.seed, arguments.seed + arguments.seeds), disable=None):
        world = World(arguments.board, arguments.fps, seed, arguments.faults)
        try:
            world.run(3600 * arguments.hours, check)
            assert not world.waiting, f"{len(world.waiting)} turns never ended"
        except AssertionError as error:
            sys.exit(f"simulate: seed {seed}: {error}")
        late = sum(s > DEADLINE_S for _, s in world.first_token_s)
        totals += Counter(turns=world.n_turns, refused=world.n_refused, late=late)
        totals += Counter(answered=len(world.first_token_s))
        totals += Counter(restarts=world.n_restarts, rebases=world.n_rebases)
        totals += Counter(budget_steps=len(world.steps), dropped=world.n_dropped)
    print(json.dumps({"seeds": arguments.seeds, "hours_each": arguments.hours, **totals}))


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
    parser.add_argument("--picture", type=Path, help="write the latencies over time as an SVG")
    parser.add_argument("--json", action="store_true", help="one JSON line for machines")
    parser.add_argument("--seeds", type=int, metavar="N", help="N worlds, from --seed on")
    arguments = parser.parse_args()
    if arguments.seeds:
        logging.disable()
        try_seeds(arguments)
        return
    world = World(arguments.board, arguments.fps, arguments.seed, arguments.faults)
    began = time.monotonic()
    world.run(3600 * arguments.hours)
    found = report(world, 3600 * arguments.hours, time.monotonic() - began)
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
        return
    print("simulated, not measured; costs of the engine:")
    for name in ("see", "hear", "prefill", "decode", "past", "snapshot"):
        cost = getattr(COSTS[arguments.board], name)
        ms = f"{cost.floor_ms:8.3g} ms + {cost.per_token_ms:7.3g} a token"
        of_each = ", of each token of the context" if name == "past" else ""
        print(f"  {name:9}{ms}   {cost.source}{of_each}")
    for name, value in found.items():
        print(f"{name:16} {value}")


if __name__ == "__main__":
    main()
