"""The settings of one run: one TOML file, checked as a whole, then frozen."""

from __future__ import annotations

import contextlib
import difflib
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from edge.errors import ConfigurationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MIN_EVS_TOKENS_PER_FRAME = 4
"""Fewer would hardly show a change: each tubelet in which anything changed keeps one."""
LOOPBACK = ("127.0.0.1", "[::1]", "localhost")
DEFAULT_BOUND, KEEP_ONE_IN = 8192, 4
"""A bound that is left to the model is at most so many tokens; one part in so many is kept."""
PositiveInt = Annotated[int, Meta(ge=1, le=1 << 20)]
PositiveOrOpen = Annotated[int, Meta(ge=0, le=1 << 20)]

# Python's $ also stands before a last line break.
Name = Annotated[str, Meta(pattern="^[a-z][a-z0-9_]{0,31}$(?!\\n)")]


class Camera(msgspec.Struct, frozen=True):
    """[[camera]]: one of the robot's eyes; any number of them, each with a clock of its own."""

    name: Name
    """In evidence, counters and, where there are several, in the prompt: letters, digits and _."""
    source: Annotated[str, Meta(min_length=1)]
    """A recording that stands for it, or `/dev/video0`, `rtsp://...`, `udp://...`, or a GStreamer
    pipeline up to its pictures; see `edge.senses.camera`."""


class Microphone(msgspec.Struct, frozen=True):
    """[[microphone]]: one of its ears. The first takes turns, the others are heard."""

    name: Name
    """As a camera's."""
    source: Annotated[str, Meta(min_length=1)]
    """`device:` and a part of a device's name, or a recording with sound; see
    `edge.senses.microphone`."""


class Perception(msgspec.Struct, frozen=True):
    """[perception]: how much of the world is looked at and listened to."""

    fps: Annotated[float, Meta(gt=0.0, le=60.0)] = 2.0
    """Frames a second taken from a video source, above 0, at most 60."""
    evs_tokens_per_s: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    """Efficient video sampling: of each picture only what changed is kept, within so many tokens a
    second of capture time; a still one costs nothing. 0 keeps everything."""
    evs_keep: Literal["pictures", "places"] = "pictures"
    """pictures: where anything changed, all of it as far as the budget goes, changed places first;
    places: only these."""
    listen: Literal["utterances", "windows"] = "windows"
    """utterances: speech only, each as one clip; windows: everything, in windows of
    audio_window_s."""
    audio_window_s: Annotated[float, Meta(ge=0.1, le=30.0)] = 2.0
    """Seconds of sound in a window, 0.1..30."""
    stale_s: Annotated[float, Meta(gt=0.0, le=3600.0)] = 5.0
    """Answers call a camera or microphone stale from which nothing younger has come."""


class Context(msgspec.Struct, frozen=True):
    """[context]: the live context."""

    system: str = ""
    """System prompt at its start; empty for none."""
    max_tokens: PositiveOrOpen = 0
    """Bound of its tokens; near it a shorter state is rebuilt. 0: 8192, or what the model is made
    for, where that is less; see `for_model`."""
    keep_tokens: PositiveOrOpen = 0
    """Newest tokens that are kept then; below max_tokens. 0: a quarter of it."""
    notes_tokens: Annotated[int, Meta(ge=0, le=1024)] = 0
    """Notes that the model writes then about the rest, at most so long; 0 for none."""


class Answer(msgspec.Struct, frozen=True):
    """[answer]: what a question gets that does not say otherwise."""

    thinking: bool = False
    """Reason before answering."""
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    """0 is greedy, at most 2. Unset: greedy, but the checkpoint's own while thinking."""
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    """Smallest set of tokens whose probability reaches top_p; 0 < top_p <= 1. Unset: likewise."""
    remember: bool = False
    """Questions and answers stay in the live context."""
    max_tokens: PositiveInt = 256
    """Tokens of an answer, its reasoning included; at most the context's max_tokens."""
    deadline_s: Annotated[float, Meta(gt=0.0, le=3600.0)] | None = None
    """Since it was asked, or since the pause that ends a spoken question: an answer that has not
    begun then is refused, one that has is cut. Unset: it may take its time."""

    abstain: str = ""
    """Text that is allowed beside whatever format a request asks for, such as "unknown"; empty for
    none. In JSON it is a JSON string."""


class Turns(msgspec.Struct, frozen=True):
    """[turns]: whether speech is answered; that of the first microphone."""

    mode: Literal["open", "push_to_talk", "typed"] = "typed"
    """open: all speech; push_to_talk: what is said between two requests of a client; typed: none,
    it is only heard. All but typed need perception.listen = "utterances"."""
    text: str = ""
    """What is asked in writing behind a spoken question, such as "Answer the question."."""


class Socket(msgspec.Struct, frozen=True):
    """[socket]: where questions arrive."""

    path: Annotated[str, Meta(min_length=1)] = "/run/edge/edge.sock"
    """The Unix socket's path, at most 107 bytes."""
    tcp: Annotated[str, Meta(pattern="^([^:]+|\\[[0-9a-f:]+\\]):[0-9]{1,5}$(?!\\n)")] | None = None
    """HOST:PORT of a TCP listener beside it, such as 127.0.0.1:8321. Unset: there is none. Any
    program of this machine may then operate the robot, unless token_file is set."""
    token_file: Annotated[str, Meta(min_length=1)] | None = None
    """A file, nobody else's (mode 0600), with the secret that TCP clients send as their API key.
    Needed for other hosts than 127.0.0.1, ::1 and localhost; it travels in clear."""
    max_waiting: Annotated[int, Meta(ge=1, le=1024)] = 8
    """Questions that may wait; one more is refused with HTTP 503."""
    max_connections: Annotated[int, Meta(ge=1, le=4096)] = 128
    """Open at a time on the Unix socket, and as many over TCP; one more is refused with HTTP 503.
    Of them one in 8 is kept for operators and admins, and one in 32 for admins."""
    max_connections_per_client: Annotated[int, Meta(ge=1, le=4096)] = 32
    """Likewise, of one user, or over TCP of one address."""
    max_outbox_events: Annotated[int, Meta(ge=16, le=1 << 20)] = 1024
    """Events that may wait for one client to read; with one more it is dropped."""
    idle_s: Annotated[float, Meta(gt=0.0, le=86_400.0)] = 60.0
    """A connection that makes no request, or reads nothing of its answer, for so long is closed.
    One that has begun a request is after 5 s, or when its body comes at less than 32 KiB/s."""


PublicKey = Annotated[str, Meta(pattern="^RW[A-Za-z0-9+/]{54}$(?!\\n)")]


class Bundles(msgspec.Struct, frozen=True):
    """[bundle]: which bundle may be run."""

    trusted_keys: tuple[PublicKey, ...] = ()
    """minisign's public keys, the second line of a .pub file each: only a bundle that one of them
    has signed is run. None: any bundle, and one with plans is native code."""


Who = Annotated[str, Meta(pattern="^@?[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}$(?!\\n)")]


class Access(msgspec.Struct, frozen=True):
    """[access]: who may use the socket: users by name or number, groups likewise with @ before it.
    Root and the service's own user are admins; whoever is not named here is refused."""

    observers: tuple[Who, ...] = ()
    """They hear of events and read health and metrics."""
    operators: tuple[Who, ...] = ()
    """They also ask, talk and set triggers."""
    admins: tuple[Who, ...] = ()
    """They also change how the service works."""


class Record(msgspec.Struct, frozen=True):
    """[record]: all that is seen, heard, asked and answered is kept in files, the oldest of which
    give way to new ones. Each file replays by itself."""

    folder: Annotated[str, Meta(min_length=1)] | None = None
    """Where; only the service's user may read it. Unset: nothing is recorded."""
    max_bytes: Annotated[int, Meta(ge=16 << 20, le=1 << 50)] = 4 << 30
    """Of all files together, 16 MiB at least."""
    max_age_s: Annotated[float, Meta(ge=0.0, le=1e9)] = 0.0
    """Older files are removed; 0: none is too old."""
    keep_free_bytes: Annotated[int, Meta(ge=0, le=1 << 50)] = 1 << 30
    """Of the disk: before there is less, the oldest files are removed, and nothing is recorded."""


class Config(msgspec.Struct, frozen=True):
    """All settings of one run."""

    perception: Perception = Perception()
    context: Context = Context()
    answer: Answer = Answer()
    turns: Turns = Turns()
    socket: Socket = Socket()
    access: Access = Access()
    bundle: Bundles = Bundles()
    record: Record = Record()
    camera: tuple[Camera, ...] = ()
    microphone: tuple[Microphone, ...] = ()


_LISTS: dict[str, type[msgspec.Struct]] = {"camera": Camera, "microphone": Microphone}
_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "perception": Perception,
    "context": Context,
    "answer": Answer,
    "turns": Turns,
    "socket": Socket,
    "access": Access,
    "bundle": Bundles,
    "record": Record,
}


def load_config(
    path: Path | None, changes: Mapping[str, Mapping[str, object]] | None = None
) -> Config:
    """The settings of a file, with changes from the command line on top.

    Args:
        path: a TOML file; None for the defaults.
        changes: section -> key -> value, each of which replaces the file's.

    Returns:
        Settings that are right one by one and together.

    Raises:
        ConfigurationError: the file cannot be read, or settings are wrong: all are listed.
    """
    read = {} if path is None else _read(path)
    changes = changes or {}
    problems: list[str] = []
    sections: dict[str, object] = {}
    for name in dict.fromkeys([*read, *changes]):
        table = read.get(name, {})
        if name in _LISTS:
            sections[name] = tuple(_list(name, table, problems))
        elif name not in _SECTIONS:
            problems.append(f"unknown section {_shown(name)}{_meant(name, [*_SECTIONS, *_LISTS])}")
        elif not isinstance(table, dict):
            problems.append(f"{name} is {_shown(table)}, expected a section [{name}]")
        else:
            changed = changes.get(name, {})
            values = _values(_SECTIONS[name], name, {**table, **changed}, changed, problems)
            sections[name] = _SECTIONS[name](**values)
    config = Config(**sections)  # type: ignore[arg-type]
    if not problems:  # the rules between settings mean something only once each one is right
        problems = list(_contradictions(config))
    if problems:
        raise ConfigurationError(
            path or "settings",
            ", ".join(problems),
            "correct it" if len(problems) == 1 else f"correct these {len(problems)} settings",
        )
    return config


def for_model(config: Config, trained_tokens: int, max_tokens: int) -> Config:
    """Settings with a bound of the context: the model's own where none is set.

    Args:
        trained_tokens: the longest sequence that the model is made for.
        max_tokens: the longest that its engine holds: context, question and answer.

    Returns:
        They with context.max_tokens and context.keep_tokens above 0, which depend on nothing that
        `without_restart` takes up.

    Raises:
        ConfigurationError: what is set does not fit together, the model's bound, or its engine.
    """
    room = max_tokens // 2  # the other half is for the question and its answer
    bound = min(DEFAULT_BOUND, room, max(trained_tokens, Answer().max_tokens))
    config = msgspec.structs.replace(config, context=_bounded(config.context, bound))
    problems = list(_contradictions(config))
    if problems:
        raise ConfigurationError(
            "settings",
            ", ".join(problems),
            f"correct it, or set context.max_tokens: unset, it is {bound} for this model",
        )
    context, answer = config.context.max_tokens, config.answer.max_tokens
    if context + answer >= max_tokens:
        raise ConfigurationError(
            "context.max_tokens",
            f"is {context}; with answers of {answer} that exceeds the model's {max_tokens}",
            "lower it",
        )
    return config


def without_restart(
    now: Config, wanted: Config, fitted: Callable[[Config], Config]
) -> tuple[Config, list[str]]:
    """What of new settings a running session can take up and keep its context.

    Args:
        wanted: `for_model`, like those it runs with.
        fitted: `for_model` of the running session: what it refuses is not taken up.

    Returns:
        Settings with the new [answer], [turns] and socket.max_waiting, as far as each fits what
        goes on as it is; the sections that hold more than that and wait for a restart.
    """
    socket = msgspec.structs.replace(now.socket, max_waiting=wanted.socket.max_waiting)
    taken = now
    for section in ({"answer": wanted.answer}, {"turns": wanted.turns}, {"socket": socket}):
        with contextlib.suppress(ConfigurationError):  # it goes with one that waits, and waits too
            taken = fitted(msgspec.structs.replace(taken, **section))
    sections = (*_SECTIONS, *_LISTS)
    return taken, [name for name in sections if getattr(taken, name) != getattr(wanted, name)]


def _read(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            path, f"cannot be read ({error.strerror})", "give the path of a readable TOML file"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            path, f"is not UTF-8 at byte {error.start}", "save it as UTF-8"
        ) from error
    except tomllib.TOMLDecodeError as error:
        # What tomllib quotes may hold line breaks and semicolons; an error is one line.
        quoted = " ".join(str(error).split()).replace(";", ",")
        raise ConfigurationError(path, f"is not TOML ({quoted})", "correct that line") from error


def _list(name: str, tables: object, problems: list[str]) -> Iterable[msgspec.Struct]:
    """The right ones of a list of sections."""
    kind = _LISTS[name]
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        problems.append(f"{name} is {_shown(tables)}, expected sections [[{name}]]")
        return
    for n, table in enumerate(tables):
        place = f"{name}[{n}]"
        values = _values(kind, place, table, {}, problems)
        missing = [key for key in kind.__struct_fields__ if key not in table]
        problems += [f"{place}.{key} is missing" for key in missing]
        if len(values) == len(kind.__struct_fields__):
            yield kind(**values)


def _values(
    section: type[msgspec.Struct],
    name: str,
    table: Mapping[str, object],
    changed: Mapping[str, object],
    problems: list[str],
) -> dict[str, object]:
    """The right settings of one section; what is wrong goes to `problems`."""
    types = {field.name: field.type for field in msgspec.structs.fields(section)}
    values: dict[str, object] = {}
    for key, value in table.items():
        origin = " (command line)" if key in changed else ""
        if key not in types:
            problems.append(f"unknown key {_shown(key)} in [{name}]{origin}{_meant(key, types)}")
            continue
        try:
            values[key] = msgspec.convert(value, types[key])
        except msgspec.ValidationError as error:
            expected = _expected(types[key], error)
            problems.append(f"{name}.{key} is {_shown(value)}{origin}: expected {expected}")
    return values


def _expected(kind: object, error: msgspec.ValidationError) -> str:
    if get_origin(kind) is Literal:  # msgspec does not say which words there are
        return " or ".join(get_args(kind))
    return str(error).removeprefix("Expected ").replace("`", "")


def _contradictions(config: Config) -> Iterable[str]:
    perception = config.perception
    n_cameras = max(1, len(config.camera))  # they share it
    least = math.ceil(MIN_EVS_TOKENS_PER_FRAME * max(perception.fps, 1)) * n_cameras
    if 0 < perception.evs_tokens_per_s < least:
        of_cameras = f" of {n_cameras} cameras" if n_cameras > 1 else ""
        yield (
            f"perception.evs_tokens_per_s is {perception.evs_tokens_per_s}: too few for "
            f"perception.fps = {perception.fps:g}{of_cameras} (at least {least}, or 0 to keep "
            "everything)"
        )
    if config.turns.mode != "typed" and perception.listen != "utterances":
        yield (
            f'turns.mode is "{config.turns.mode}": it needs perception.listen = "utterances", '
            f'not "{perception.listen}"'
        )
    if config.socket.tcp and not config.socket.token_file:
        host = config.socket.tcp.rpartition(":")[0]
        if host not in LOOPBACK:
            yield f'socket.tcp is "{config.socket.tcp}": beyond this machine it needs token_file'
    names = [*(c.name for c in config.camera), *(m.name for m in config.microphone)]
    for name in sorted({name for name in names if names.count(name) > 1 or name == "turn"}):
        yield f"the name {_shown(name)} of a camera or microphone is taken: choose another"
    most = msgspec.structs.replace(config, context=_bounded(config.context, DEFAULT_BOUND))
    yield from _beyond_the_bound(most)  # of any model; `for_model` looks at one


def _bounded(context: Context, bound: int) -> Context:
    """With what is left open: the bound, and how much of it is kept."""
    bound = context.max_tokens or bound
    keep = context.keep_tokens or max(1, bound // KEEP_ONE_IN)
    return msgspec.structs.replace(context, max_tokens=bound, keep_tokens=keep)


def _beyond_the_bound(config: Config) -> Iterable[str]:
    context, answer = config.context, config.answer
    for name, tokens, fits in (
        ("context.keep_tokens", context.keep_tokens, context.keep_tokens < context.max_tokens),
        (
            "context.notes_tokens",
            context.notes_tokens,
            context.notes_tokens < context.max_tokens - context.keep_tokens,
        ),
        ("answer.max_tokens", answer.max_tokens, answer.max_tokens <= context.max_tokens),
    ):
        if not fits:
            yield f"{name} is {tokens}: too many for context.max_tokens = {context.max_tokens}"


def _meant(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _shown(value: object) -> str:
    """A value as an error quotes it: short, one line, without the separator of an EdgeError."""
    text = repr(value).replace(";", ",")
    return text if len(text) <= 60 else f"{text[:57]}..."
