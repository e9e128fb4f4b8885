"""Questions about the present scene, while scene follows scene: how much history the model bears.

    python scripts/tiny_omni/evaluate_history.py BUNDLE --bounds 512 1024 2048

Streams of held-out films run into one live context, unpruned, and after each film one question
about it is asked. Prints, for each bound of the context, how many were answered right.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

from evaluate import MAX_ANSWER_TOKENS, Subject, cases
from scenes import FRAME_S
from tqdm import tqdm

from edge.clock import NS_PER_S, VirtualClock
from edge.config import Config, Context, for_model
from edge.model.sampling import Sampling
from edge.session.answer import answer
from edge.session.context import LiveContext
from edge.session.perceive import Watcher, encoded
from edge.session.turn import Message, Question, TextDelta, Turn
from edge.types import Frame

TASKS = ("color", "shape", "count", "exist", "where", "move")
PLENTY = 1 << 20


def hits(subject: Subject, max_tokens: int, seconds: float, seed: int) -> list[bool]:
    """Which answers are right in one stream; 0 max_tokens for the model's own bound."""
    engine, clock = subject.engine, VirtualClock()
    decoder, context = engine.spec.decoder, Context(max_tokens=max_tokens)
    bound = for_model(Config(context=context), decoder.trained_tokens, decoder.max_tokens).context
    live = LiveContext(
        *(engine, subject.prompt.anchor(), subject.prompt.separator()),
        max_tokens=bound.max_tokens,
        keep_tokens=bound.keep_tokens,
    )
    watcher = Watcher(engine, subject.tokenizer, clock, 0)
    films = [cases(task, PLENTY, None, seed) for task in TASKS]
    right: list[bool] = []
    frame_ids = itertools.count()
    capture_ns = 0
    for film in itertools.cycle(films):
        if capture_ns >= seconds * NS_PER_S:
            return right
        case = next(film)
        for pixels in case.frames:
            watcher.take(Frame(pixels, capture_ns, next(frame_ids), "camera"))
            capture_ns += int(FRAME_S * NS_PER_S)
            for seen in encoded(watcher):
                live.append(seen.perceived)
        events: list[object] = []
        asked = Message("user", case.asked.question)
        question = Question((asked,), Sampling(), MAX_ANSWER_TOKENS)
        answer(live, subject.prompt, Turn(question, 0, events.append), clock)
        said = "".join(event.text for event in events if isinstance(event, TextDelta))
        right.append(said == case.asked.answer)
    raise AssertionError("films never end")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--bounds", type=int, nargs="+", default=[0], help="0: the model's own")
    parser.add_argument("--streams", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=600.0, help="of each stream")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--json", action="store_true", help="one JSON line for machines")
    arguments = parser.parse_args()
    subject = Subject(arguments.bundle)
    found: dict[int, list[bool]] = {bound: [] for bound in arguments.bounds}
    for bound, i in tqdm(
        list(itertools.product(found, range(arguments.streams))), disable=arguments.json
    ):
        found[bound] += hits(subject, bound, arguments.seconds, arguments.seed + 10 * i)
    shares = {bound: round(sum(right) / len(right), 4) for bound, right in found.items()}
    if arguments.json:
        print(json.dumps({"right": shares, "cases": len(found[arguments.bounds[0]])}))
        return
    for bound, right in found.items():
        name = f"bound of {bound} tokens" if bound else "the model's own bound"
        print(f"{name:24} {shares[bound]:6.1%} of {len(right)}")


if __name__ == "__main__":
    main()
