"""Random worlds around a live session, each of which is compared with the reference.

A world is a value: what there is (cameras, microphones, settings, how fast the engine is) and a
list of happenings, each with its time. `random_world` draws one from a seed; `Play` plays it on a
virtual clock, step by step beside `reference_session.Reference`; `cut` makes one that fails small,
so that it can stand in a test as it is printed.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import msgspec
import numpy as np
from chained_engine import ChainedEngine, Speed, small
from reference_session import Difference, Observed, Reference, same
from reference_session import Sense as ReferenceSense

from edge.clock import NS_PER_MS, NS_PER_S, Clock, VirtualClock
from edge.config import Config, for_model, load_config, without_restart
from edge.errors import CapacityError, ConfigurationError, EdgeError, ProtocolError
from edge.features.evs import CausalPruner
from edge.model.constrain import (
    FRAME_FORMAT,
    grammar_of_choice,
    grammar_of_lark,
    grammar_of_regex,
    grammar_of_schema,
)
from edge.model.prompt import ChatTemplate
from edge.model.sampling import Sampling
from edge.model.spec import ModelSpec, model_spec
from edge.model.tokenizer import Tokenizer
from edge.model.tool_calls import tool_call_lark
from edge.senses.sound import BLOCK_NS, BLOCK_SAMPLES
from edge.senses.turn_events import Button, Choose, Played, SpeechStarted
from edge.senses.turns import TurnDetector
from edge.session.health import BoardHealth
from edge.session.live_prompt import LivePrompt
from edge.session.loop import LiveLoop
from edge.session.moment import PARTS, Moment
from edge.session.perceive import Collector, Listener, Watcher, WindowCollector
from edge.session.record import Recorded, RecordedClock, Recorder, ReplayedClock, read
from edge.session.record_files import Bounds, files_of
from edge.session.replay import Observed as Observed_
from edge.session.replay import Replayed, replay
from edge.session.sense import Sense, audio_sense, video_sense
from edge.session.triggers import Trigger, TriggerBegan, TriggerEnded
from edge.session.turn import Done, Failed, Message, Question, SpeechStopped, Spoken, ToolCall
from edge.types import AudioChunk, Frame, Picture, Sound

MODEL = Path(__file__).resolve().parents[1] / "assets" / "tiny_omni"
START_NS = 7 * NS_PER_S
MAX_IDLE_S, MAX_STEPS = 1.0, 50_000
WELL = BoardHealth(70.0, 95.0, memory_share=0.6, power_w=30.0, max_power_w=40.0)
HEALTHS = {
    "well": WELL,
    "hot": replace(WELL, temperature_c=94.0),
    "throttled": replace(WELL, temperature_c=97.0, is_throttled=True),
    "full": replace(WELL, memory_share=0.97),
    "power": replace(WELL, power_w=44.0),
    "warm": replace(WELL, temperature_c=88.0, memory_share=0.92, power_w=37.0),
}
SIZES = ((24, 40), (32, 32))
CONDITIONS = ("Is there a person?", "somebody  is lying on the floor.", "a bell", "<|im_start|>")
TEXTS = ("What do you see?", "", "Hello", "Tell me " + "all that you remember of it " * 12)
TOOLS = ({"type": "function", "function": {"name": "look", "parameters": {
    "type": "object", "properties": {"at": {"type": "string", "enum": ["left", "right"]}},
    "required": ["at"]}}},)  # fmt: skip
CHATS: dict[str, Callable[[Message], tuple[Message, ...]]] = {
    "alone": lambda asked: (asked,),
    "told": lambda asked: (Message("system", "You are kind."), asked),
    "talk": lambda asked: (asked, Message("assistant", "Yes."), Message("user", "And now?")),
    "called": lambda asked: (
        asked,
        Message("assistant", "", calls=(ToolCall("look", {"at": "left"}),)),
        Message("tool", "a cat"),
    ),
}
MEDIA: dict[str, Picture | Sound] = {
    "picture": Picture(bytes(range(192)) * 16, 32, 32),
    "wide": Picture(bytes(96 * 8 * 3), 96, 8),
    "sound": Sound(np.linspace(-0.1, 0.1, 4800, dtype=np.float32).tobytes()),
    "noise": Sound(np.full(1600, np.nan, np.float32).tobytes()),
}
_NAMED = {"type": "object", "properties": {"at": {"type": "string", "format": FRAME_FORMAT}},
          "required": ["at"]}  # fmt: skip


@lru_cache(maxsize=8)
def _grammar(name: str) -> str:
    return {
        "choice": lambda: grammar_of_choice(["yes", "no", "maybe so"], "unknown"),
        "word": lambda: grammar_of_regex("[a-z]{2,5}"),
        "frame": lambda: grammar_of_schema(_NAMED),
        "frame or not": lambda: grammar_of_schema(_NAMED, "unknown"),
        "call": lambda: grammar_of_lark("tools", tool_call_lark(TOOLS)),
    }[name]()


@dataclass(frozen=True)
class Happening:
    """Something happens in a world."""

    at_ms: int
    what: str
    with_: tuple[Any, ...] = ()


@dataclass(frozen=True)
class World:
    """What there is, and what happens."""

    cameras: tuple[str, ...]
    microphones: tuple[str, ...]
    settings: dict[str, dict[str, Any]]
    happenings: tuple[Happening, ...]
    for_ms: int = 10_000
    fps: float = 2.0
    chunk_blocks: int = 5
    speed: Speed = field(default_factory=Speed)
    room_tokens: int = 1200
    """The longest sequence that the engine holds."""


@lru_cache(maxsize=1)
def model() -> tuple[ModelSpec, Tokenizer, ChatTemplate]:
    """The small model: its sizes, tokenizer and template."""
    read = (json.loads((MODEL / f"{n}config.json").read_text()) for n in ("", "generation_"))
    return model_spec(*read), Tokenizer(MODEL), ChatTemplate(MODEL)


def random_world(seed: int) -> World:
    """A world of a few seconds, of a seed."""
    random = Random(seed)
    cameras = ("front", "rear", "arm")[: random.choice((0, 1, 1, 2, 2, 3))]
    microphones = ("near", "far")[: random.choice((0, 1, 1, 1, 2))]
    if not cameras and not microphones:
        cameras = ("front",)
    is_talk = bool(microphones) and random.random() < 0.02  # longer than one clip holds
    for_ms = 17_000 if is_talk else int(1000 * 2 ** random.uniform(0.5, 3.6))
    is_slow = not is_talk and random.random() < 0.06  # in which what takes a minute can happen
    fps, chunk_blocks, every_ms = (
        random.choice((1.0, 2.0, 2.0, 4.0)),
        random.choice((3, 5, 10)),
        200,
    )
    if is_slow:
        for_ms, fps, chunk_blocks, every_ms = random.randint(30_000, 90_000), 0.5, 40, 2500
    slow = 2 ** random.uniform(-1.5, 3.0)
    speed = Speed(
        see=(4 * slow, slow), hear=(5 * slow, 0.2), prefill=(12 * slow, 0.05), decode=(8 * slow, 0)
    )
    happenings = [
        _happening(random, for_ms, cameras, microphones) for _ in range(for_ms // every_ms)
    ]
    if is_talk:
        happenings.append(Happening(0, "speak", (microphones[0], random.randint(14_200, 15_100))))
    if random.random() < 0.1:
        happenings.append(Happening(for_ms * 3 // 4, "drain"))
    settings = _settings(random, len(cameras), fps)
    n_least = settings["context"]["max_tokens"] + settings["answer"]["max_tokens"]
    return World(
        cameras,
        microphones,
        settings,
        tuple(sorted(happenings, key=lambda happening: happening.at_ms)),
        for_ms,
        fps,
        chunk_blocks,
        speed,
        random.choice((n_least + 12, n_least + 30, 700, 1200)),
    )


def _settings(random: Random, n_cameras: int, fps: float) -> dict[str, dict[str, Any]]:
    bound = random.choice((180, 240, 400, 640))
    listen = random.choice(("utterances", "utterances", "windows"))
    modes = ("open", "open", "push_to_talk", "typed") if listen == "utterances" else ("typed",)
    return {
        "perception": {
            "fps": fps,
            "listen": listen,
            "audio_window_s": random.choice((0.3, 1.0, 2.0)),
            "evs_tokens_per_s": random.choice((0, 0, 16 * max(1, n_cameras))),
            "evs_keep": random.choice(("pictures", "places")),
            "stale_s": random.choice((0.5, 5.0)),
        },
        "context": {
            "max_tokens": bound,
            "keep_tokens": int(bound * random.choice((0.25, 0.4, 0.7))),
            "notes_tokens": random.choice((0, 0, 16, 30)),
            "system": random.choice(("", "Be brief.")),
        },
        "answer": _answer(random),
        "turns": {"mode": random.choice(modes), "text": random.choice(("", "Answer."))},
        "socket": {"max_waiting": random.choice((1, 3, 8))},
    }


def _answer(random: Random) -> dict[str, Any]:
    values: dict[str, Any] = {"max_tokens": random.choice((4, 12, 30))}
    if random.random() < 0.2:
        values["thinking"] = True
    if random.random() < 0.2:
        values["remember"] = True
    if random.random() < 0.2:
        values["deadline_s"] = random.choice((0.2, 1.0, 3.0))
    if random.random() < 0.2:
        values |= {"temperature": 0.8, "top_p": random.choice((0.5, 1.0))}
    return values


def _happening(
    random: Random, for_ms: int, cameras: tuple[str, ...], microphones: tuple[str, ...]
) -> Happening:
    kinds = ["ask"] * 12 + ["crowd", "cancel", "cancel", "watch", "trigger", "trigger", "delete"]
    kinds += ["away", "end", "bad", "jump", "burst", "stall", "slow", "health"]
    kinds += ["reload"] * (3 if random.random() < 0.2 else 1)
    kinds += ["break"] * (random.random() < 0.02)
    if cameras:
        kinds += ["still", "resize"]
    if microphones:
        kinds += ["speak"] * 10 + ["choose", "button", "button", "button", "wishes"]
        kinds += ["play"] * (random.random() < 0.5)
    kind = random.choice(kinds)
    sense = random.choice(cameras + microphones)
    ms = int(2 ** random.uniform(5, 12.5))
    with_: dict[str, Callable[[], tuple[Any, ...]]] = {
        "ask": lambda: (random.choice(TEXTS), random.choice((1, 3, 8, 20, 40)), _options(random)),
        "crowd": lambda: (random.randint(2, 10),),
        "cancel": lambda: (random.randint(1, 4),),
        "trigger": lambda: (_trigger(random), random.choice((1,) * 19 + (17,))),
        "delete": lambda: (random.randint(1, 3),),
        "away": lambda: (sense, ms),
        "end": lambda: (sense,),
        "bad": lambda: (sense,),
        "jump": lambda: (sense, random.choice((-1, 1)) * ms, 4 * ms),
        "burst": lambda: (sense, random.choice((3, 12, 40))),
        "stall": lambda: (ms,),
        "slow": lambda: (random.choice((2.0, 6.0)), 2 * ms),
        "health": lambda: (random.choice(list(HEALTHS)),),
        "reload": lambda: (_reloaded(random),),
        "break": lambda: (random.randint(0, 6),),
        "still": lambda: (random.choice(cameras), 2 * ms),
        "resize": lambda: (random.choice(cameras),),
        "speak": lambda: (random.choice(microphones), random.choice((120, ms, ms))),
        "choose": lambda: (random.choice(("open", "open", "push_to_talk", "typed")),),
        "button": lambda: (random.choice(("begin", "begin", "commit", "commit", "cancel")),),
        "wishes": lambda: (random.choice((3, 70)),),
        "play": lambda: (random.choice((100, 100, 300, 300, 20_000)),),
    }
    return Happening(random.randrange(for_ms), kind, with_.get(kind, tuple)())


def _options(random: Random) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, share, values in (
        ("deadline_s", 0.15, (0.05, 0.5, 2.0)),
        ("remember", 0.15, (True,)),
        ("consistency", 0.15, (True,)),
        ("thinking", 0.15, (True,)),
        ("stop", 0.2, (("e",), ("the", "a", "t ing"))),
        ("priority", 0.1, ("trigger",)),
        ("seed", 0.2, (1, 7)),
        ("special", 0.03, (True,)),
        ("chat", 0.2, tuple(CHATS)),
        ("media", 0.1, (("picture",), ("wide", "sound"), ("sound",), ("noise",))),
        ("grammar", 0.08, ("choice", "word", "frame", "frame or not", "call")),
        ("channel", 0.3, ("operator",)),
        ("tools", 0.08, (True,)),
    ):
        if random.random() < share:
            options[name] = random.choice(values)
    if "remember" not in options and random.random() < 0.2:
        longer, shorter = sorted((random.uniform(0, 8), random.uniform(0, 8)), reverse=True)
        options["recall_s"] = (round(longer, 2), round(shorter, 2))
    if "tools" in options and random.random() < 0.7:
        options |= {"channel": "operator", "grammar": "call"}
        options.pop("thinking", None)
    if options.get("consistency"):
        options.pop("thinking", None)
    options["user"] = ("", "user 1", "user 2")[len(options) % 3]
    return options


def _often(random: Random) -> bool:
    return random.random() < 0.8


def _trigger(random: Random) -> dict[str, Any]:
    trigger = {
        "condition": random.choice(CONDITIONS),
        "modality": random.choice(("any", "video", "audio")),
        "period_s": random.choice((0.1, 0.5, 1.0)),
        "debounce_s": random.choice((0.0, 0.0, 0.5)),
        "cooldown_s": random.choice((0.0, 1.0, 5.0)),
        "priority": random.choice(("high", "normal", "low")),
    }
    return {name: value for name, value in trigger.items() if name == "condition" or _often(random)}


def _reloaded(random: Random) -> dict[str, dict[str, Any]]:
    changes: dict[str, dict[str, Any]] = {"answer": _answer(random)}
    if _often(random):
        mode = random.choice(("open", "push_to_talk", "typed"))
        changes["turns"] = {"mode": mode, "text": random.choice(("", "Say it."))}
    if random.random() < 0.5:
        changes["socket"] = {"max_waiting": random.choice((1, 2, 8))}
    if random.random() < 0.2:
        changes["context"] = {"max_tokens": random.choice((200, 2000))}
    return changes


class Told:
    """A turn detector that says what it was given and made of it."""

    def __init__(self, detector: TurnDetector, name: str, log: list[Any]) -> None:
        self._detector, self._name, self._log = detector, name, log

    @property
    def mode(self) -> Any:
        return self._detector.mode

    def _say(self, given: Any, make: Callable[[], Any]) -> Any:
        try:
            made = make()
        except EdgeError as error:
            self._log.append((self._name, given, error, self.mode))
            raise
        self._log.append((self._name, given, tuple(made), self.mode))
        return made

    def push(self, chunk: AudioChunk) -> Any:
        return self._say(chunk, lambda: self._detector.push(chunk))

    def flush(self) -> Any:
        return self._say(None, self._detector.flush)

    def control(self, wish: Any) -> Any:
        return self._say(wish, lambda: self._detector.control(wish))


@dataclass(eq=False)
class Source:
    """A camera or microphone of the world."""

    sense: Sense[Any]
    model: ReferenceSense
    is_there: bool = True
    voiced_until_ns: int = 0
    still_until_ns: int = 0
    skew_ns: int = 0
    size: int = 0
    is_next_bad: bool = False
    n: int = 0


PARTS["Told"] = {"_detector": PARTS["Listener"]["_collector"]}
PARTS["function"] = {}
"""Detectors of speech in worlds remember nothing."""


class Witness:
    """Stands where a recorder stands, and before one: what the loop took in a step."""

    problem = ""
    counters: ClassVar[dict[str, int]] = {}

    def __init__(self, recorder: Recorder | None = None) -> None:
        self.taken: list[tuple[str, object]] = []
        self._recorder = recorder

    def begin(self) -> bool:
        self.taken = []
        return self._recorder is not None and self._recorder.begin()

    def begin_file(self, settings: dict[str, Any], moment: Moment) -> None:
        assert self._recorder is not None
        self._recorder.begin_file(settings, moment)

    def took(self, name: str, item: object, asked_ns: int = 0) -> None:
        self.taken.append((name, item))
        if self._recorder is not None:
            self._recorder.took(name, item, asked_ns)

    def outside(self, name: str, read: Callable[[], Any]) -> Any:
        return read() if self._recorder is None else self._recorder.outside(name, read)

    def saw(self, event: object) -> None:
        if self._recorder is not None:
            self._recorder.saw(event)

    def end(self) -> None:
        if self._recorder is not None:
            self._recorder.end()


def fitted(world: World, settings: dict[str, dict[str, Any]]) -> Config:
    """Settings with the bounds of the world's model."""
    decoder = engine_spec(world).decoder
    return for_model(load_config(None, settings), decoder.trained_tokens, decoder.max_tokens)


def engine_spec(world: World) -> ModelSpec:
    """The sizes of the world's model."""
    return small(model()[0], world.room_tokens)


def _pruner(world: World, config: Config) -> CausalPruner | None:
    perception = config.perception
    if not perception.evs_tokens_per_s:
        return None
    tokens_per_s, most = (
        perception.evs_tokens_per_s // len(world.cameras),
        math.ceil(perception.fps / 2) + 1,
    )
    return CausalPruner(tokens_per_s, most, whole_pictures=perception.evs_keep == "pictures")


def session(
    world: World,
    engine: ChainedEngine,
    clock: Clock,
    heard: list[Any],
    recorder: Any,
    health: Callable[[], BoardHealth] | None = None,
) -> tuple[LiveLoop, list[Sense[Any]]]:
    """The runtime's loop of a world, with its senses, that nothing plays.

    Args:
        heard: is told what turn detectors made of what they were given.
    """
    _, tokenizer, template = model()
    config = fitted(world, world.settings)
    parts, perception, senses = (engine, tokenizer, clock), config.perception, list[Sense[Any]]()
    for name in world.microphones:
        collector: Collector = WindowCollector(perception.audio_window_s)
        if perception.listen == "utterances":
            mode = config.turns.mode if not senses else "typed"
            detector = TurnDetector(mode, lambda samples: float(samples[0]))
            collector = Told(detector, name, heard)
        several = len(world.microphones) > 1
        listener = Listener(*parts, collector, name=name if several else "", is_named=several)
        senses.append(audio_sense(listener, name=name))
    for name in world.cameras:
        several = len(world.cameras) > 1
        watcher = Watcher(
            *(*parts, START_NS, _pruner(world, config)),
            fps=perception.fps,
            name=name if several else "",
            is_named=several,
        )
        senses.append(video_sense(watcher, name=name))
    prompt = LivePrompt(tokenizer, template, config.context.system)
    about = (engine, prompt, config, clock, "", senses)
    loop = LiveLoop(*about, start_ns=START_NS, recorder=recorder, health=health)
    return loop, senses


def _as_due(world: World, config: Config) -> list[ReferenceSense]:
    """The senses as the reference has them."""
    found = []
    for names, hears in ((world.microphones, True), (world.cameras, False)):
        for name in names:
            pruner = None if hears else _pruner(world, config)
            several = len(names) > 1
            found.append(ReferenceSense(name, hears, name if several else "", several, pruner))
    return found


def replayed(world: World, path: Path) -> Iterator[Replayed]:
    """Record a world to a file and run it again, step by step."""
    with Recorder(path, RecordedClock(VirtualClock(START_NS))) as recorder:
        _record(world, recorder)
    return _replayed(world, read(path))


class OftenAnother(Recorder):
    """Begins another file after so many steps, if the moment is quiet."""

    n_steps, n_of_a_file = 0, 1

    def begin(self) -> bool:
        """Nothing else is a reason."""
        super().begin()
        self.n_steps += 1
        return self.n_steps % self.n_of_a_file == 0


def replayed_by_itself(world: World, folder: Path, n_steps: int) -> Iterator[list[Replayed]]:
    """Record a world to files of about so many steps, and run each of them again by itself."""
    clock = RecordedClock(VirtualClock(START_NS))
    with OftenAnother(folder, clock, Bounds(1 << 40)) as recorder:
        recorder.n_of_a_file = n_steps
        _record(world, recorder)
    for path in files_of(folder):
        recorded = read(path)
        yield [*_replayed(world, recorded)]
        assert recorded.cut == "", path


def _record(world: World, recorder: Recorder) -> None:
    settings = msgspec.to_builtins(fitted(world, world.settings))
    recorder.describe("", START_NS, settings, world.microphones, world.cameras)
    Play(world, recorder).run()


def _replayed(world: World, recorded: Recorded) -> Iterator[Replayed]:
    def build(
        _about: dict[str, Any], clock: ReplayedClock, observed: Observed_
    ) -> tuple[LiveLoop, list[Sense[Any]]]:
        engine = ChainedEngine(VirtualClock(), engine_spec(world), world.speed)
        return session(world, engine, clock, [], observed)

    return replay(recorded, build)


class Play:
    """A world in time: the session, the reference, and what clients were told."""

    def __init__(self, world: World, recorder: Recorder | None = None) -> None:
        _, tokenizer, template = model()
        self.world, self.clock = world, VirtualClock(START_NS)
        clock: Clock = self.clock
        if recorder is not None:
            clock = recorder.clock
            self.clock = clock._clock  # type: ignore[assignment]
        self.config = fitted(world, world.settings)
        self.engine = ChainedEngine(self.clock, engine_spec(world), world.speed)
        self.heard: list[Any] = []
        self.health, self.n_steps, self.witness = WELL, 0, Witness(recorder)
        parts = (world, self.engine, clock, self.heard, self.witness)
        self.loop, senses = session(*parts, lambda: self.health)
        due = _as_due(world, self.config)
        self.sources = {
            one.name: Source(sense, one) for sense, one in zip(senses, due, strict=True)
        }
        self.reference = Reference(
            *(self.engine.spec, tokenizer, template, self.config, due, START_NS, self.engine.log)
        )
        self.reference.health = WELL
        self.events: list[tuple[Any, object]] = []
        self.loop.observe(lambda event: self.events.append(("all", event)))
        self.loop.watch(lambda event: self.events.append(("spoken", event)))
        self.turns: list[Any] = []
        self.told: list[list[object]] = []
        """What each client was told whose question was accepted."""
        self.all: list[object] = []
        self.spoken: list[object] = []
        self.watchers: list[tuple[Callable[[], None], list[object], int]] = []
        self.triggers: list[str] = []
        self.count: Counter[str] = Counter()
        self._due: list[tuple[int, int, Callable[[], object]]] = []
        self._order = itertools.count()

    # Time.

    def run(self) -> Counter[str]:
        """Play it to its end.

        Returns:
            What happened how often.
        Raises:
            Difference: the session and the reference do not agree.
        """
        end_ns = START_NS + self.world.for_ms * NS_PER_MS
        for happening in self.world.happenings:
            at_ns = START_NS + happening.at_ms * NS_PER_MS
            self._at(at_ns, partial(self._happen, happening))
        for n, (name, source) in enumerate(self.sources.items()):
            ticks = self._sounds(source) if name in self.world.microphones else self._looks(source)
            self._again(START_NS + 7 * n * NS_PER_MS, ticks)
        while self.clock.now_ns() < end_ns:
            while self._due and self._due[0][0] <= self.clock.now_ns():
                heapq.heappop(self._due)[2]()
            busy = self._step()
            if busy is None:
                break
            if not busy:
                self._sleep(end_ns)
        self._close()
        return self.count

    def _at(self, at_ns: int, do: Callable[[], object]) -> None:
        heapq.heappush(self._due, (at_ns, next(self._order), do))

    def _again(self, at_ns: int, ticks: Iterator[int]) -> None:
        self._at(at_ns, lambda: self._again(next(ticks), ticks))

    def _in_ms(self, ms: int, do: Callable[[], object]) -> None:
        self._at(self.clock.now_ns() + ms * NS_PER_MS, do)

    def _sleep(self, end_ns: int) -> None:
        """Until something happens, or is due; as the loop's thread does."""
        now_ns = self.clock.now_ns()
        until_ns = min(end_ns, now_ns + int(MAX_IDLE_S * NS_PER_S))
        if self._due:
            until_ns = min(until_ns, self._due[0][0])
        wait_s = self.loop._wait_s()
        if wait_s is not None:
            if wait_s <= 0:
                raise Difference("the loop has nothing to do and may not sleep")
            until_ns = min(until_ns, now_ns + max(1, round(wait_s * NS_PER_S)))
        self.clock.sleep_until(until_ns)

    def _step(self) -> bool | None:
        """One step of both; None after an error that ends the service."""
        self.n_steps += 1
        if self.n_steps > MAX_STEPS:
            raise Difference("the session comes to no end")
        self.engine.log.clear()
        self.heard.clear()
        self.events.clear()
        began_ns, error, busy = self.clock.now_ns(), None, False
        try:
            busy = self.loop.step()
        except EdgeError as raised:
            error = raised
        self.reference.step(self._observed(began_ns, busy, error))
        self._keep_events()
        return None if error is not None else busy

    def _observed(self, began_ns: int, busy: bool, error: Exception | None) -> Observed:
        context = self.loop._context
        before = context._before_fork
        state = context.state.value if before is None else before.value
        has_worked = bool(self.engine.log or self.events)
        return Observed(
            began_ns,
            self.clock.now_ns(),
            busy,
            error,
            self.engine.log,
            self.events,
            self.heard,
            self.witness.taken,
            self.loop.status() if has_worked or busy else None,
            self.loop.triggers.entries(),
            [(s.modality, s.n_tokens, s.evidence) for s in context.ledger] if has_worked else None,
            state,
            self.loop._wait_s(),
        )

    def _keep_events(self) -> None:
        for to, event in self.events:
            if to == "all":
                self.all.append(event)
                self.count[type(event).__name__] += 1
            elif to == "spoken":
                self.spoken.append(event)
            else:
                self.told[to].append(event)

    def _close(self) -> None:
        """The service ends; everybody has been told all that was promised."""
        for _, model in ((s.sense, s.model) for s in self.sources.values()):
            served, counts = model, model.counts
            waiting = len(served.ring)
            if counts["dropped"] + counts["skipped"] + waiting > counts["received"]:
                raise Difference(f"{model.name}: more is lost than came: {dict(counts)}")
        self.engine.log.clear()
        self.heard.clear()
        self.events.clear()
        began_ns = self.clock.now_ns()
        self.loop.stop()
        self.loop.run()
        self.reference.stop(self._observed(began_ns, False, None))
        self._keep_events()
        for leave, heard, n_before in self.watchers:
            leave()
            same(
                "what a watcher heard",
                [id(e) for e in heard],
                [id(e) for e in self.spoken[n_before:]],
            )
        for number, told in enumerate(self.told):
            ends = [n for n, event in enumerate(told) if isinstance(event, Done | Failed)]
            same(f"the ends of turn {number}", ends, [len(told) - 1])
        self._check_triggers()
        self._check_talk()
        self.count["steps"] = self.n_steps
        self.count["asked"] = len(self.told)

    def _check_triggers(self) -> None:
        on: set[str] = set()
        for event in self.all:
            if isinstance(event, TriggerBegan):
                if event.id in on:
                    raise Difference(f"{event.id} begins twice")
                on.add(event.id)
            elif isinstance(event, TriggerEnded):
                if event.id not in on:
                    raise Difference(f"{event.id} ends and had not begun")
                on.remove(event.id)

    def _check_talk(self) -> None:
        """Of spoken turns one is answered at a time: nothing is said that nobody asked."""
        is_open = False
        speech = [
            event for event in self.spoken if isinstance(event, SpeechStarted | SpeechStopped)
        ]
        pairs = [SpeechStarted, SpeechStopped] * ((len(speech) + 1) // 2)
        same("starts and ends of speech", [type(event) for event in speech], pairs)
        for event in self.spoken:
            if isinstance(event, Spoken):
                is_open = True
            elif isinstance(event, Done):
                if not is_open:
                    raise Difference("an answer ends that was not begun")
            elif not isinstance(event, SpeechStarted | SpeechStopped | Failed) and not is_open:
                raise Difference(f"{event!r} is told without a question")

    # What the world does by itself.

    def _looks(self, source: Source) -> Iterator[int]:
        at_ns = self.clock.now_ns()
        while True:
            if source.is_there:
                self._look(source)
            at_ns += int(NS_PER_S / self.world.fps)
            yield at_ns

    def _look(self, source: Source) -> None:
        now_ns, size = self.clock.now_ns(), SIZES[source.size]
        if now_ns >= source.still_until_ns:
            source.n += 1
        number = source.model.counts["received"]
        pixels = _picture(source.n % 16, size)
        if source.is_next_bad:
            source.is_next_bad, pixels = False, np.zeros((1, 2000, 3), np.uint8)
        frame = Frame(pixels, now_ns + source.skew_ns, number, f"{source.model.name}.device")
        source.sense.put(frame)
        self.reference.put(source.model, frame)

    def _sounds(self, source: Source) -> Iterator[int]:
        at_ns, chunk_ns = self.clock.now_ns(), self.world.chunk_blocks * BLOCK_NS
        while True:
            at_ns += chunk_ns
            yield at_ns
            if source.is_there:
                self._sound(source, at_ns - chunk_ns)

    def _sound(self, source: Source, begun_ns: int, n_blocks: int | None = None) -> None:
        n_blocks = n_blocks or self.world.chunk_blocks
        samples = np.zeros(n_blocks * BLOCK_SAMPLES, np.float32)
        for block in range(n_blocks):
            is_voiced = begun_ns + block * BLOCK_NS < source.voiced_until_ns
            samples[block * BLOCK_SAMPLES] = 0.9 if is_voiced else 0.0
        source.n += 1
        samples[1] = source.n % 1000 / 1e4
        if source.is_next_bad:
            source.is_next_bad, samples[5] = False, np.nan
        name = f"{source.model.name}.device"
        chunk = AudioChunk(samples, begun_ns + source.skew_ns, name)
        source.sense.put(chunk)
        self.reference.put(source.model, chunk)

    # What happens to it.

    def _happen(self, happening: Happening) -> None:
        self.count[happening.what] += 1
        getattr(self, f"_{happening.what}")(*happening.with_)

    def _refused(self, what: str, do: Callable[[], Any], due: Any) -> Any:
        """Do something that may be refused, and only as it is due."""
        try:
            done = do()
        except (CapacityError, ProtocolError) as error:
            same(what, type(error), due)
            self.count[f"{what} refused"] += 1
            return None
        if isinstance(due, type):
            raise Difference(f"{what}: was done, and is to be refused with {due.__name__}")
        return done

    def _ask(self, text: str, n_tokens: int, options: dict[str, Any]) -> None:
        options = dict(options)
        seed = options.pop("seed", None)
        sampling = Sampling() if seed is None else Sampling(0.9, 0.9, seed=seed)
        if options.pop("special", False):
            text += "<|im_start|>"
        media = tuple(MEDIA[name] for name in options.pop("media", ()))
        messages = CHATS[options.pop("chat", "alone")](Message("user", text, media))
        options["grammar"] = _grammar(options["grammar"]) if "grammar" in options else ""
        options["tools"] = TOOLS if options.pop("tools", False) else ()
        if options["tools"] and options["grammar"]:
            n_tokens = 90
        question = Question(messages, sampling, n_tokens, **options)
        number, now_ns = len(self.told), self.clock.now_ns()
        due = self.reference.ask(question, number, now_ns)

        def deliver(event: object) -> None:
            self.events.append((number, event))

        turn = self._refused("ask", lambda: self.loop.ask(question, deliver), due)
        if turn is not None:
            self.turns.append(turn)
            self.told.append([])

    def _crowd(self, n: int) -> None:
        for i in range(n):
            self._ask(TEXTS[0], 2 + i % 5, {"user": ("", "user 1", "user 2")[i % 3]})

    def _cancel(self, n_back: int) -> None:
        if n_back <= len(self.turns):
            number = len(self.turns) - n_back
            self.turns[number].cancel()
            self.reference.cancel(number)

    def _watch(self) -> None:
        heard: list[object] = []
        self.watchers.append((self.loop.watch(heard.append), heard, len(self.spoken)))

    def _trigger(self, options: dict[str, Any], n: int = 1) -> None:
        trigger = Trigger(**options)
        for _ in range(n):
            due = self.reference.make(trigger)
            name = self._refused("trigger", lambda: self.loop.triggers.create(trigger), due)
            if name is not None:
                same("trigger's name", name, due)
                self.triggers.append(name)

    def _delete(self, n_back: int) -> None:
        name = self.triggers[-n_back] if n_back <= len(self.triggers) else "trigger_0"
        due = self.reference.delete(name)
        self._refused("delete", lambda: self.loop.triggers.delete(name), due)

    def _away(self, name: str, ms: int) -> None:
        source = self.sources[name]
        source.is_there = False
        self._in_ms(ms, lambda: setattr(source, "is_there", True))

    def _end(self, name: str) -> None:
        source = self.sources[name]
        source.sense.end()
        self.reference.end(source.model)

    def _bad(self, name: str) -> None:
        self.sources[name].is_next_bad = True

    def _jump(self, name: str, by_ms: int, for_ms: int) -> None:
        source = self.sources[name]
        source.skew_ns = by_ms * NS_PER_MS
        self._in_ms(for_ms, lambda: setattr(source, "skew_ns", 0))

    def _burst(self, name: str, n: int) -> None:
        source = self.sources[name]
        for i in range(n):
            if name in self.world.cameras:
                self._look(source)
            else:
                self._sound(source, self.clock.now_ns() + 32 * i * BLOCK_NS, 32)

    def _stall(self, ms: int) -> None:
        self.engine.stall_ms += ms

    def _slow(self, factor: float, ms: int) -> None:
        self.engine.slowdown = factor
        self._in_ms(ms, lambda: setattr(self.engine, "slowdown", 1.0))

    def _health(self, name: str) -> None:
        self.health = self.reference.health = HEALTHS[name]

    def _reload(self, changes: dict[str, dict[str, Any]]) -> None:
        """As the service does it."""
        wanted_settings = {**self.world.settings}
        for section, values in changes.items():
            wanted_settings[section] = {**wanted_settings[section], **values}
        try:
            wanted = fitted(self.world, wanted_settings)
            decoder = self.engine.spec.decoder
            fit = partial(
                for_model, trained_tokens=decoder.trained_tokens, max_tokens=decoder.max_tokens
            )
            taken, _ = without_restart(self.config, wanted, fit)
        except ConfigurationError:
            return
        due = self.reference.change(taken)
        self._refused("reload", lambda: self.loop.change(taken), due)
        if due is None:
            self.config = taken

    def _break(self, n_calls: int) -> None:
        self.engine.fails_after = n_calls

    def _drain(self) -> None:
        self.loop.drain()
        self.reference.is_draining = True

    def _still(self, name: str, ms: int) -> None:
        self.sources[name].still_until_ns = self.clock.now_ns() + ms * NS_PER_MS

    def _resize(self, name: str) -> None:
        self.sources[name].size ^= 1

    def _speak(self, name: str, ms: int) -> None:
        self.sources[name].voiced_until_ns = self.clock.now_ns() + ms * NS_PER_MS

    def _control(self, wish: Any) -> None:
        due = self.reference.control(wish)
        self._refused("wish", lambda: self.loop.control(wish), due)

    def _choose(self, mode: Any) -> None:
        self._control(Choose(mode))

    def _button(self, do: Any) -> None:
        self._control(Button(do))

    def _wishes(self, n: int) -> None:
        for i in range(n):
            self._control(Choose("open" if i % 2 else "typed"))

    def _play(self, ms: int) -> None:
        samples = np.full(16 * ms, 1e-3, np.float32)
        self._control(Played(AudioChunk(samples, self.clock.now_ns(), "robot")))


@lru_cache(maxsize=64)
def _picture(n: int, size: tuple[int, int]) -> Any:
    pixels = np.full((*size, 3), 16 * n, np.uint8)
    pixels[: size[0] // 2] = 255 - 16 * n
    return pixels


def cut(world: World, fails: Callable[[World], bool], n_tries: int = 400) -> World:
    """A smaller world that fails too: happenings are left out as long as that is so."""
    size = max(1, len(world.happenings) // 2)
    while n_tries > 0:
        at, is_smaller = 0, False
        while at < len(world.happenings) and n_tries > 0:
            left = (*world.happenings[:at], *world.happenings[at + size :])
            smaller = replace(world, happenings=left)
            n_tries -= 1
            if fails(smaller):
                world, is_smaller = smaller, True
            else:
                at += size
        if size == 1 and not is_smaller:
            break
        size = max(1, size // 2)
    return world


def play(world: World) -> Counter[str]:
    """What happened in a world.

    Raises:
        Difference: the session and the reference do not agree.
    """
    return Play(world).run()


def fails(world: World) -> bool:
    """Whether the two do not agree, or either breaks."""
    try:
        play(world)
    except Exception:  # noqa: BLE001 - whatever it is, it is to be looked at
        return True
    return False
