"""Time to the first token of an answer: on a live session, short and long, and by sending it all.

A film at two frames a second is perceived for ten seconds in one session and for ten minutes in
another; then the same question is asked, in turn, of each, and once more as a request that sends
the last 60 s again, as a client of a server without live state must. Medians of one run.

Usage:
    python scripts/bench_live.py BUNDLE
    python scripts/bench_live.py BUNDLE --simulated thor      # by a board's costs, not measured
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from published_config import CONFIG, GENERATION_CONFIG

from edge.clock import NS_PER_MS, NS_PER_S, Clock, MonotonicClock, VirtualClock
from edge.config import KEEP_ONE_IN, Config, Context, for_model
from edge.engines.bundle import Bundle
from edge.engines.cpu import CpuEngine
from edge.engines.engine import AnyEngine
from edge.engines.simulated import COSTS, SimulatedEngine
from edge.model.prompt import ChatTemplate
from edge.model.sampling import Sampling
from edge.model.spec import model_spec
from edge.model.tokenizer import Tokenizer
from edge.session.answer import answer
from edge.session.context import LiveContext
from edge.session.live_prompt import LivePrompt
from edge.session.perceive import Watcher, encoded
from edge.session.turn import Done, Message, Question, Turn
from edge.types import Frame

FPS = 2
SHORT_S, LONG_S, RESENT_S = 10, 600, 60
HEIGHT, WIDTH = 360, 640
N_PICTURES = 16
QUESTION = "What do you see?"


def film(seconds: int, since_s: int = 0) -> Iterator[Frame]:
    """Frames of moving noise: their content does not matter to the time."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (N_PICTURES, HEIGHT, WIDTH, 3), np.uint8)
    for i in range(since_s * FPS, (since_s + seconds) * FPS):
        yield Frame(pictures[i % N_PICTURES], i * NS_PER_S // FPS, i, "camera")


class Bench:
    """One engine and what is asked of it; 0 max_tokens for the model's own bound."""

    def __init__(self, engine: AnyEngine, folder: Path, clock: Clock, max_tokens: int) -> None:
        decoder, context = engine.spec.decoder, Context(max_tokens=max_tokens)
        config = for_model(Config(context=context), decoder.trained_tokens, decoder.max_tokens)
        self.engine, self.clock, self.bound = engine, clock, config.context
        self.prompt = LivePrompt(Tokenizer(folder), ChatTemplate(folder), system="")

    def session(self) -> LiveContext:
        """A session that has perceived nothing yet."""
        anchor, separator = self.prompt.anchor(), self.prompt.separator()
        return LiveContext(
            *(self.engine, anchor, separator),
            max_tokens=self.bound.max_tokens,
            keep_tokens=self.bound.keep_tokens,
        )

    def perceive(self, context: LiveContext, frames: Iterator[Frame]) -> None:
        """Take frames in, with the rebases that they cause."""
        watcher = Watcher(self.engine, self.prompt.tokenizer, self.clock, 0)
        for frame in frames:
            watcher.take(frame)
            for seen in encoded(watcher):
                context.append(seen.perceived)
                while context.owes_rebase:
                    context.rebase()

    def first_token_ms(self, context: LiveContext) -> float:
        """Ask, and wait for the first token."""
        question = Question((Message("user", QUESTION),), Sampling(), max_tokens=1)
        asked_ns = self.clock.now_ns()
        deliver = deque[Any](maxlen=1).append
        done = answer(context, self.prompt, Turn(question, asked_ns, deliver), self.clock)
        assert isinstance(done, Done)
        return (done.timeline.first_token_ns - asked_ns) / NS_PER_MS

    def resent_ms(self) -> float:
        """Send the last 60 s with the question, whole, whatever the bound."""
        began_ns = self.clock.now_ns()
        anchor, separator = self.prompt.anchor(), self.prompt.separator()
        most = self.engine.spec.decoder.max_tokens
        context = LiveContext(
            self.engine, anchor, separator, max_tokens=most, keep_tokens=most // KEEP_ONE_IN
        )
        self.perceive(context, film(RESENT_S))
        sent_ms = (self.clock.now_ns() - began_ns) / NS_PER_MS
        return sent_ms + self.first_token_ms(context)


def measure(bench: Bench, rounds: int, quiet: bool) -> dict[str, Any]:
    """Medians, interleaved."""
    short, long = bench.session(), bench.session()
    bench.perceive(short, film(SHORT_S))
    for minute in tqdm(range(LONG_S // 60), desc="minutes", disable=quiet):
        bench.perceive(long, film(60, 60 * minute))
    times: dict[str, list[float]] = {"short": [], "long": [], "resent": []}
    for i in tqdm(range(rounds), desc="rounds", disable=quiet):
        times["short"].append(bench.first_token_ms(short))
        times["long"].append(bench.first_token_ms(long))
        if i % 5 == 0:
            times["resent"].append(bench.resent_ms())
    medians = {name: float(np.median(values)) for name, values in times.items()}
    return {
        **{f"{name}_ms": round(value, 2) for name, value in medians.items()},
        "bound": bench.bound.max_tokens,
        "tokens": {"short": short.n_tokens, "long": long.n_tokens},
        "rebases": long.n_rebases,
        "long_over_short": round(medians["long"] / medians["short"], 3),
        "resent_over_long": round(medians["resent"] / medians["long"], 1),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--simulated", choices=COSTS, help="a board's costs instead of this CPU")
    parser.add_argument(
        "--max-tokens", type=int, default=0, help="bound of the live context (default: the model's)"
    )
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", action="store_true", help="one JSON line for machines")
    arguments = parser.parse_args()
    bundle = Bundle(arguments.bundle)
    clock: Clock = MonotonicClock()
    engine: AnyEngine
    if arguments.simulated:
        clock = VirtualClock()
        spec = model_spec(CONFIG, GENERATION_CONFIG)
        engine = SimulatedEngine(COSTS[arguments.simulated], clock, spec)
    else:
        engine = CpuEngine(bundle)
    found = measure(
        Bench(engine, bundle.path, clock, arguments.max_tokens), arguments.rounds, arguments.json
    )
    if arguments.json:
        print(json.dumps(found))
        return
    of = f"simulated {arguments.simulated}" if arguments.simulated else "measured on this CPU"
    print(f"time to the first token, {of}, median of {arguments.rounds}", end="")
    print(f", bound {found['bound']} tokens")
    print(f"  after {SHORT_S:4} s of film   {found['short_ms']:9.1f} ms")
    print(f"  after {LONG_S:4} s of film   {found['long_ms']:9.1f} ms", end="")
    print(f"   {found['long_over_short']} times that ({found['rebases']} rebases)")
    print(f"  sending the last {RESENT_S} s {found['resent_ms']:8.1f} ms", end="")
    print(f"   {found['resent_over_long']} times that")


if __name__ == "__main__":
    main()
