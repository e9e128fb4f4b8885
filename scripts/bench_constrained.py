"""Constrained answers over random JSON Schemas: are they always valid, and what does it cost?

Builds schemas at random (bounded strings, arrays and numbers, so that every answer can end), lets
the trained small model answer each of them, greedily and by sampling, and validates the answer with
an implementation that is not ours. The cost is the time in masks against the time in decode steps;
that of a vocabulary of 131,072 tokens is measured on the same grammars. The last line is JSON.

    python scripts/bench_constrained.py BUNDLE [--schemas 1000] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

from edge.clock import MonotonicClock
from edge.engines.bundle import Bundle
from edge.engines.cpu import CpuEngine
from edge.model import constrain
from edge.model.grammar_process import Tokens
from edge.model.grammars import Vocabulary
from edge.model.prompt import ChatTemplate
from edge.model.sampling import Sampling
from edge.model.tokenizer import Tokenizer
from edge.session import answer as answering
from edge.session.context import LiveContext
from edge.session.live_prompt import LivePrompt
from edge.session.turn import AnswerEvent, Message, Question, TextDelta, Turn

WORDS = ("red", "blue", "circle", "square", "left", "right", "count", "seen", "x", "Größe")
MAX_TOKENS = 400


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema whose values are short."""
    leaves = ("string", "integer", "number", "boolean", "enum", "const", "null")
    kind = rng.choice(leaves if depth >= 2 else (*leaves, "object", "object", "array", "anyOf"))
    if depth == 0:
        kind = rng.choice(("object", "object", "array", kind))
    if kind == "object":
        names = rng.sample(WORDS, rng.randint(0, 4))
        properties = {name: random_schema(rng, depth + 1) for name in names}
        required = [name for name in names if rng.random() < 0.7]
        extra = {"type": "object", "properties": properties, "additionalProperties": False}
        return {**extra, "required": required}
    if kind == "array":
        n_least = rng.randint(0, 2)
        bounds = {"minItems": n_least, "maxItems": n_least + rng.randint(0, 2)}
        return {"type": "array", "items": random_schema(rng, depth + 1), **bounds}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth + 1) for _ in range(2)]}
    if kind == "string":
        return rng.choice(
            (
                {"type": "string", "maxLength": rng.randint(1, 12)},
                {"type": "string", "minLength": 2, "maxLength": 5},
                {"type": "string", "pattern": "^[a-f]{2,4}-[0-9]{2}$"},
                {"type": "string", "format": "date"},
            )
        )
    if kind == "integer":
        least = rng.randint(-50, 50)
        return {"type": "integer", "minimum": least, "maximum": least + rng.randint(0, 200)}
    if kind == "number":
        return {"enum": [rng.randint(0, 9), 2.5, -0.125]}
    if kind == "enum":
        return {"enum": [*rng.sample(WORDS, 3), 7]}
    if kind == "const":
        return {"const": rng.choice((*WORDS, 3, True))}
    return {"type": kind}


@dataclass
class Timed:
    """A constraint that counts the time that it takes."""

    inner: constrain.Constraint
    took_s: list[float] = field(default_factory=list)

    def allow(self, logits: Any) -> Any:
        began_s = time.perf_counter()
        allowed = self.inner.allow(logits)
        self.took_s.append(time.perf_counter() - began_s)
        return allowed

    def take(self, token: int) -> None:
        began_s = time.perf_counter()
        self.inner.take(token)
        self.took_s[-1] += time.perf_counter() - began_s


class Model:
    """The small model with an empty live context."""

    def __init__(self, bundle: Path) -> None:
        self.engine = CpuEngine(Bundle(bundle))
        self.tokenizer = Tokenizer(bundle)
        self.prompt = LivePrompt(self.tokenizer, ChatTemplate(bundle), "")
        anchor, separator = self.prompt.anchor(), self.prompt.separator()
        self.context = LiveContext(self.engine, anchor, separator, max_tokens=256, keep_tokens=128)
        self.mask_s: list[float] = []
        self.step_s: list[float] = []

    def ask(self, grammar: str, sampling: Sampling) -> tuple[str, str]:
        """Answer; text and finish reason. Counts the time of masks and of decode steps."""
        said: list[AnswerEvent] = []
        words = (Message("user", "What do you see?"),)
        question = Question(words, sampling, MAX_TOKENS, grammar=grammar)
        step = answering.Answering(self.prompt, Turn(question, 0, said.append), MonotonicClock())
        step.begin(self.context)
        timed = Timed(step._constraint) if step._constraint is not None else None
        if timed is not None:
            step._constraint = timed  # type: ignore[assignment]
        times: list[float] = []
        while True:
            began_s = time.perf_counter()
            done = step.step()
            times.append(time.perf_counter() - began_s)
            if done is not None:
                break
        self.mask_s += timed.took_s if timed is not None else []
        self.step_s += times[1:-1]
        text = "".join(event.text for event in said if isinstance(event, TextDelta))
        return text, done.finish_reason


def large_vocabulary(rng: random.Random) -> list[bytes]:
    """131,072 tokens: an end, all bytes, then made-up words."""
    syllables = ["re", "lo", "ti", "an", "sch", "qu", "e", "o", "12", "::", "{", '"', "\n", "é"]
    made: dict[bytes, None] = {bytes([b]): None for b in range(256)}
    while len(made) < 131_071:
        word = "".join(rng.choices(syllables, k=rng.randint(1, 5)))
        made.setdefault(f"{rng.choice(('', ' '))}{word}".encode())
    return [b"<end>", *made]


def large_mask_us(grammars: list[str], rng: random.Random) -> dict[str, float]:
    """What a mask costs with as many tokens as the published model has."""
    spelled = large_vocabulary(rng)
    tokens = Vocabulary(Tokens(spelled, [0], [0], len(spelled), ""))
    logits = np.random.default_rng(0).normal(size=len(spelled)).astype(np.float32)
    took_s: list[float] = []
    for grammar in grammars:
        tokens.problem_of(grammar)  # the first one waits for the process that has the vocabulary
        timed = Timed(constrain.Constraint(tokens, grammar))
        for _ in range(MAX_TOKENS):
            token = int(timed.allow(np.roll(logits, rng.randint(0, 1 << 17))).argmax())
            if token == 0:
                break
            timed.take(token)
        took_s += timed.took_s
    ordered = sorted(took_s)
    us = {"p50": statistics.median(took_s), "p99": ordered[int(0.99 * len(ordered))]}
    return {
        "large_mask_us": round(us["p50"] * 1e6, 1),
        "large_mask_p99_us": round(us["p99"] * 1e6, 1),
        "large_mask_mean_us": round(statistics.mean(took_s) * 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--schemas", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    rng, model = random.Random(words.seed), Model(words.bundle)
    n_valid = n_whole = 0
    grammars: list[str] = []
    compile_s: list[float] = []
    for n in range(words.schemas):
        schema = random_schema(rng)
        began_s = time.perf_counter()
        grammar = constrain.grammar_of_schema(schema)
        compile_s.append(time.perf_counter() - began_s)
        grammars.append(grammar)
        sampling = Sampling() if n % 2 else Sampling(temperature=1.0, seed=n)
        text, reason = model.ask(grammar, sampling)
        n_whole += reason == "stop"
        try:
            jsonschema.validate(json.loads(text), schema)
            n_valid += 1
        except (ValueError, jsonschema.ValidationError) as error:
            print(f"schema {n} is not followed ({reason}): {schema} -> {text!r}: {error}")
    large = large_mask_us(grammars[:100], rng)
    masks, steps = sum(model.mask_s), sum(model.step_s)
    figures = {
        "benchmark": "constrained",
        "schemas": words.schemas,
        "valid": n_valid,
        "whole": n_whole,
        "tokens": len(model.mask_s),
        "mask_us": round(statistics.median(model.mask_s) * 1e6, 1),
        "mask_p99_us": round(sorted(model.mask_s)[int(0.99 * len(model.mask_s))] * 1e6, 1),
        "step_ms": round(statistics.median(model.step_s) * 1e3, 3),
        "share_of_decode": round(masks / (steps - masks), 4),
        "compile_ms": round(statistics.median(compile_s) * 1e3, 3),
        **large,
    }
    print(
        f"{n_valid} of {words.schemas} answers are valid, {n_whole} are whole; a mask takes "
        f"{figures['mask_us']} us, {100 * figures['share_of_decode']:.1f} % of decoding; "
        f"with 131,072 tokens {large['large_mask_us']} us"
    )
    print(json.dumps(figures))
    if n_valid < words.schemas:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
