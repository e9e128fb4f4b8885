"""Change recordings in many ways, and see that `edge replay` bears each of them.

A good recording is made and then changed: values, keys, messages, their order, arrays, chunks and
bytes. What is left of it replays, or ends in one clear error; none ends in a traceback, hangs or
takes gigabytes. The last line printed is JSON; ends with 1 if anything failed, and keeps the files
that did.

Usage:
    python scripts/fuzz_recordings.py BUNDLE --n 5000 --seed 1
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import signal
import struct
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zstandard
from mcap.records import Chunk
from mcap.stream_reader import StreamReader
from mcap.writer import CompressionType, Writer

from edge import service
from edge.config import Answer, Config, Context, Perception, Turns, for_model
from edge.engines.bundle import Bundle
from edge.engines.choose import Choice, opened
from edge.engines.engine import AnyEngine
from edge.errors import EdgeError
from edge.model.sampling import Sampling
from edge.session.moment import moment_of
from edge.session.record import MAX_CHUNK_BYTES, RecordedClock, Recorder, _messages, read
from edge.session.record_files import Bounds, files_of
from edge.session.replay import replay
from edge.session.triggers import Trigger
from edge.session.turn import Message, Question
from edge.types import AudioChunk, Frame

MAX_S = 30
"""Of one mutant, on a machine that others use, too."""
MAX_GROWTH_BYTES = 2 << 30
KEPT = Path(".cache/fuzz/recordings")
Messages = list[tuple[str, Any]]
BAD: tuple[Callable[[], Any], ...] = (
    *(lambda: None, lambda: -1, lambda: 2**63, lambda: -(2**70), lambda: 1e308, lambda: ""),
    *(lambda: "x" * 70_000, list, dict, lambda: True, lambda: 0, lambda: "utterances"),
    *(lambda: [[]] * 3, lambda: {"is": "Echo"}, lambda: "AAAA", lambda: 10**400),
)


class Ticks:
    """A clock that goes on by a millisecond whenever it is asked."""

    def __init__(self) -> None:
        self.ns = 0

    def now_ns(self) -> int:
        """The next one."""
        self.ns += 1_000_000
        return self.ns

    def sleep_until(self, deadline_ns: int) -> None:
        """It has passed."""
        self.ns = max(self.ns, deadline_ns)


def good(folder: Path, engine: AnyEngine, bundle: Bundle) -> list[Path]:
    """A session of two files, with something of everything in it."""
    decoder = engine.spec.decoder
    config = Config(
        perception=Perception(evs_tokens_per_s=64, listen="utterances"),
        context=Context(max_tokens=600, keep_tokens=150),
        answer=Answer(max_tokens=4),
        turns=Turns(mode="open"),
    )
    config = for_model(config, decoder.trained_tokens, decoder.max_tokens)
    settings = msgspec.to_builtins(config)
    clock = RecordedClock(Ticks())
    draws = np.random.default_rng(0)
    with Recorder(folder, clock, Bounds(1 << 30)) as recorder:
        recorder.describe("small", 0, settings, ["mast"], ["front"])
        about = {"settings": settings, "model": "small", "start_ns": 0}
        about |= {"microphones": ["mast"], "cameras": ["front"]}
        loop, (ear, eye) = service.recorded_session(engine, bundle, about, clock, recorder)
        loop.triggers.create(Trigger("Is there a person?"))
        for n in range(4):
            if n == 2 and (moment := moment_of(loop)) is not None:
                recorder.begin_file(settings, moment)
            for k in range(3):
                at_ns = clock._clock.now_ns()
                pixels = draws.integers(0, 256, (32, 48, 3)).astype(np.uint8)
                eye.put(Frame(pixels, at_ns, 3 * n + k, "front"))
                ear.put(AudioChunk(draws.normal(0, 0.1, 800).astype(np.float32), at_ns, "mast"))
                while loop.step():
                    pass
            loop.ask(Question((Message("user", "What?"),), Sampling(), 3), lambda _: None)
            while loop.step():
                pass
    return files_of(folder)


def messages_of(path: Path) -> Messages:
    """What is in it."""
    with path.open("rb") as file:
        return list(_messages(file))


def write(path: Path, messages: Messages, compression: CompressionType) -> None:
    """A recording of these."""
    with path.open("wb") as file:
        writer = Writer(file, chunk_size=4096, compression=compression)
        writer.start()
        channels: dict[str, int] = {}
        for topic, content in messages:
            if topic not in channels:
                schema = writer.register_schema("x", "jsonschema", b"{}")
                channels[topic] = writer.register_channel(f"/{topic}", "json", schema)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            writer.add_message(channels[topic], 0, data, 0)
        writer.finish()  # type: ignore[no-untyped-call]


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value[:50]))
    for key, one in inner:
        yield (*at, key)
        yield from _places(one, (*at, key))


def _change_value(draws: random.Random, messages: Messages) -> None:
    n = _chosen(draws, messages)
    content = messages[n][1]
    places = list(_places(content))
    if not places:
        return
    *before, last = draws.choice(places)
    for key in before:
        content = content[key]
    what = draws.random()
    if what < 0.3:
        del content[last]
    elif what < 0.4 and isinstance(content, dict):
        content[f"{last}_"] = content.pop(last)
    elif isinstance(content[last], int | float) and what < 0.7:
        content[last] = draws.choice([0, -1, 1, content[last] + 1, content[last] * 2**40, 2**62])
    elif isinstance(content[last], str) and what < 0.7:
        content[last] = content[last][: draws.randrange(len(content[last]) + 1)]
    else:
        content[last] = draws.choice(BAD)()


def _chosen(draws: random.Random, messages: Messages) -> int:
    """A message, rare kinds as often as others."""
    topic = draws.choice(sorted({topic for topic, _ in messages}))
    return draws.choice([n for n, (found, _) in enumerate(messages) if found == topic])


def _replace_message(draws: random.Random, messages: Messages) -> None:
    n = _chosen(draws, messages)
    topic = draws.choice([messages[n][0], "step", "camera", "moment", "rows", "end", "elsewhere"])
    deep = b"[" * 100_000
    messages[n] = topic, draws.choice([deep, b"", b"\xff", b"{", b"1e999", *(f() for f in BAD)])


def _move_messages(draws: random.Random, messages: Messages) -> None:
    n = _chosen(draws, messages)
    what = draws.random()
    if what < 0.4:
        del messages[n]
    elif what < 0.7:
        messages.insert(draws.randrange(len(messages)), messages[n])
    else:
        messages.insert(draws.randrange(len(messages)), messages.pop(n))


def _change_topic(draws: random.Random, messages: Messages) -> None:
    n = _chosen(draws, messages)
    messages[n] = draws.choice(sorted({topic for topic, _ in messages})), messages[n][1]


CHANGES = (_change_value, _change_value, _replace_message, _move_messages, _change_topic)


def bytes_changed(draws: random.Random, data: bytes) -> bytes:
    """Cut, overwritten or repeated."""
    at = draws.randrange(len(data))
    what = draws.random()
    if what < 0.3:
        return data[:at]
    if what < 0.8:
        return data[:at] + draws.randbytes(draws.randint(1, 9)) + data[at + 9 :]
    return data[:at] + data[draws.randrange(len(data)) :]


@cache
def bomb(n_bytes: int = -1) -> bytes:
    """Zeros, packed; their number is told, unless it is -1."""
    zeros = bytes(1 << 20)
    packer = zstandard.ZstdCompressor().compressobj(size=n_bytes)
    n_mib = 64 if n_bytes < 0 else n_bytes >> 20
    return b"".join(packer.compress(zeros) for _ in range(n_mib)) + packer.flush()


def chunk_changed(draws: random.Random, path: Path) -> bytes:
    """Its first chunk says or holds what no recording does."""
    data = path.read_bytes()
    with path.open("rb") as file:
        chunk = next(r for r in StreamReader(file, emit_chunks=True).records if type(r) is Chunk)
    packed, said, kind = draws.choice(
        [
            (chunk.data, 2**40, "zstd"),
            (chunk.data, 0, "zstd"),
            (chunk.data, 7, "zstd"),
            (bomb(2 * MAX_CHUNK_BYTES), 2 * MAX_CHUNK_BYTES, "zstd"),
            (bomb(2 * MAX_CHUNK_BYTES), 10, "zstd"),
            (bomb(), 100, "zstd"),
            (chunk.data, chunk.uncompressed_size, "lz4"),
            (chunk.data, chunk.uncompressed_size, ""),
            (b"", 0, ""),
            (struct.pack("<BQ", 5, 2**62), 9, ""),
        ]
    )
    name = kind.encode()
    body = struct.pack("<QQQII", 0, 0, said, 0, len(name)) + name
    body += struct.pack("<Q", len(packed)) + packed
    record = struct.pack("<BQ", 6, len(body)) + body
    at = data.index(struct.pack("<B", 6), 8)
    return data[:at] + record + data[at:]


def mutant(draws: random.Random, paths: list[Path], path: Path) -> str:
    """Write a changed recording to `path`; how it was changed."""
    original = draws.choice(paths)
    what = draws.random()
    if what < 0.15:
        path.write_bytes(bytes_changed(draws, original.read_bytes()))
        return "bytes"
    if what < 0.25:
        path.write_bytes(chunk_changed(draws, original))
        return "chunk"
    messages = messages_of(original)
    changes = draws.choices(CHANGES, k=draws.choice([1, 1, 1, 2, 4]))
    for change in changes:
        change(draws, messages)
    write(path, messages, draws.choice([CompressionType.NONE, CompressionType.ZSTD]))
    return changes[0].__name__.strip("_")


def outcome(path: Path, engine: AnyEngine, bundle: Bundle) -> str:
    """What comes of its replay, in a word.

    Raises:
        Exception: what must not come of it.
    """
    try:
        recorded = read(path)
        steps = list(replay(recorded, partial(service.recorded_session, engine, bundle)))
    except EdgeError as error:
        return type(error).__name__
    return "same" if all(step.is_same for step in steps) else "other events"


def _too_long(*_: object) -> None:
    raise TimeoutError(f"not done after {MAX_S} s")


def main() -> int:
    """Print what came of how many."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    draws, found, n_failed = random.Random(options.seed), Counter[str](), 0
    signal.signal(signal.SIGALRM, _too_long)
    bundle = Bundle(options.bundle)
    with tempfile.TemporaryDirectory() as folder, opened(bundle, Choice(unverified=True)) as engine:
        paths = good(Path(folder) / "good", engine, bundle)
        path = Path(folder) / "mutant.mcap"
        began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        for n in range(options.n):
            how = mutant(draws, paths, path)
            signal.alarm(MAX_S)
            try:
                found[f"{how}: {outcome(path, engine, bundle)}"] += 1
            except Exception:  # noqa: BLE001 - that is what is looked for
                n_failed += 1
                KEPT.mkdir(parents=True, exist_ok=True)
                path.rename(KEPT / f"{options.seed}_{n}.mcap")
                print(f"{KEPT / f'{options.seed}_{n}.mcap'} ({how})", file=sys.stderr)
                traceback.print_exc()
            finally:
                signal.alarm(0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - began
    for what, count in sorted(found.items()):
        print(f"{count:6} {what}")
    print(json.dumps({"n": options.n, "failed": n_failed, "grown_mb": grown >> 20}))
    return int(n_failed > 0 or grown > MAX_GROWTH_BYTES)


if __name__ == "__main__":
    sys.exit(main())
