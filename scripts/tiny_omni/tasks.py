"""Questions about scenes and sounds, with the truth: what the small model is asked.

Answers are short, so that every token of an answer is knowledge. A question about something that
is not there has the honest answer `none`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scenes import COLORS, MOTIONS, SHAPES, Scene, Thing

NUMBERS = ("none", "one", "two", "three", "four", "five", "six")
PLACES = ("left", "middle", "right")
NONE = "none"
NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Asked:
    """One question and its true answer."""

    task: str
    question: str
    answer: str


def seen(scene: Scene, frame: int) -> list[Thing]:
    """What is visible in a frame."""
    return [thing for thing in scene.things if thing.visible(frame)]


def _only(things: list[Thing], kind: str, value: int) -> Thing | None:
    found = [thing for thing in things if getattr(thing, kind) == value]
    return found[0] if len(found) == 1 else None


def _subject(
    rng: np.random.Generator, things: list[Thing], kind: str, n: int
) -> tuple[int, Thing | None] | None:
    """A shape (or colour) to ask about: usually one that is there once, else one that is not."""
    present = [getattr(thing, kind) for thing in things]
    absent = [value for value in range(n) if value not in present]
    unique = [value for value in set(present) if present.count(value) == 1]
    if unique and (not absent or rng.random() < 0.75):
        value = unique[rng.integers(len(unique))]
        return value, _only(things, kind, value)
    return (absent[rng.integers(len(absent))], None) if absent else None


def ask_color(rng: np.random.Generator, scene: Scene) -> Asked | None:
    found = _subject(rng, seen(scene, scene.n_frames - 1), "shape", len(SHAPES))
    if found is None:
        return None
    shape, thing = found
    answer = COLORS[thing.color] if thing else NONE
    return Asked("color", f"What color is the {SHAPES[shape]}?", answer)


def ask_shape(rng: np.random.Generator, scene: Scene) -> Asked | None:
    found = _subject(rng, seen(scene, scene.n_frames - 1), "color", len(COLORS))
    if found is None:
        return None
    color, thing = found
    answer = SHAPES[thing.shape] if thing else NONE
    return Asked("shape", f"What shape is the {COLORS[color]} one?", answer)


def ask_count(_rng: np.random.Generator, scene: Scene) -> Asked | None:
    n = len(seen(scene, scene.n_frames - 1))
    return Asked("count", "How many shapes are there?", NUMBERS[n])


def ask_exist(rng: np.random.Generator, scene: Scene) -> Asked | None:
    things = seen(scene, scene.n_frames - 1)
    present = sorted({thing.shape for thing in things})
    absent = [shape for shape in range(len(SHAPES)) if shape not in present]
    pool = present if present and (not absent or rng.random() < 0.5) else absent
    shape = int(pool[rng.integers(len(pool))])
    return Asked("exist", f"Is there a {SHAPES[shape]}?", "yes" if shape in present else "no")


def ask_where(rng: np.random.Generator, scene: Scene) -> Asked | None:
    things = seen(scene, scene.n_frames - 1)
    found = _subject(rng, things, "shape", len(SHAPES))
    if found is None:
        return None
    shape, thing = found
    question = f"Where is the {SHAPES[shape]}?"
    if thing is None:
        return Asked("where", question, NONE)
    third = thing.at(scene.n_frames - 1)[0] / scene.aspect * 3
    if min(abs(third - 1), abs(third - 2)) < 0.12:
        return None  # on the border of two places
    return Asked("where", question, PLACES[min(2, max(0, int(third)))])


def ask_see(_rng: np.random.Generator, scene: Scene) -> Asked | None:
    last = scene.n_frames - 1
    things = sorted(seen(scene, last), key=lambda thing: thing.at(last)[0])
    if any(b.at(last)[0] - a.at(last)[0] < 0.06 for a, b in itertools.pairwise(things)):
        return None  # no clear order from left to right
    answer = ", ".join(f"a {thing.name}" for thing in things) or NOTHING
    return Asked("see", "What do you see?", answer)


def ask_move(rng: np.random.Generator, scene: Scene) -> Asked | None:
    if scene.n_frames < 2:
        return None
    movers = [t for t in scene.things if t.motion and _only(list(scene.things), "shape", t.shape)]
    if movers and rng.random() < 0.7:
        thing = movers[0]
        return Asked("move", f"How does the {SHAPES[thing.shape]} move?", MOTIONS[thing.motion])
    found = _subject(rng, list(scene.things), "shape", len(SHAPES))
    if found is None:
        return None
    shape, thing = found
    answer = MOTIONS[thing.motion] if thing else NONE
    return Asked("move", f"How does the {SHAPES[shape]} move?", answer)


def ask_change(_rng: np.random.Generator, scene: Scene) -> Asked | None:
    if scene.n_frames < 4:
        return None
    last = scene.n_frames - 1
    answer = NOTHING
    for thing in scene.things:
        if not thing.visible(0) and thing.visible(last):
            answer = f"the {thing.name} appeared"
        if thing.visible(0) and not thing.visible(last):
            answer = f"the {thing.name} disappeared"
    return Asked("change", "What changed?", answer)


ABOUT_A_PICTURE: tuple[Callable[[np.random.Generator, Scene], Asked | None], ...] = (
    ask_color,
    ask_shape,
    ask_count,
    ask_exist,
    ask_where,
    ask_see,
)
ABOUT_A_FILM = (*ABOUT_A_PICTURE, ask_move, ask_move, ask_change)

ANSWER_IT = "Answer the question."
WHICH_WORD = "Which word was said?"
WHAT_WAS_SAID = "What was said?"


def word_said(word: str | None) -> Asked:
    """About a sound that holds one word, or none."""
    return Asked("word", WHICH_WORD, word or NONE)


def transcript(aloud: str) -> Asked:
    """About a sound that holds a spoken question: the question itself."""
    return Asked("said", WHAT_WAS_SAID, aloud)


def spoken(asked: Asked) -> tuple[str, Asked]:
    """What is said aloud, and what is typed after it."""
    aloud = asked.question.rstrip("?").lower()
    return aloud, Asked(f"spoken {asked.task}", ANSWER_IT, asked.answer)


def quoted(asked: Asked) -> Asked:
    """As `spoken`, but written."""
    aloud, _ = spoken(asked)
    return Asked(f"quoted {asked.task}", f"{aloud}\n{ANSWER_IT}", asked.answer)


def typed_only(rng: np.random.Generator) -> Asked:
    """A question that needs no sense, or one about a sound that nobody made."""
    if rng.random() < 0.05:
        return word_said(None)
    if rng.random() < 0.5:
        words = (*COLORS, *SHAPES)
        word = words[rng.integers(len(words))]
        return Asked("say", f"Say {word}.", word)
    a, b = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    return Asked("sum", f"What is {NUMBERS[a]} plus {NUMBERS[b]}?", NUMBERS[a + b])


def corpus() -> str:
    """Text that the tokenizer is built from: every word of the tasks, as it is written there."""
    digits = "Frame 1 sampled at 0.00 seconds and frame 2 sampled at 0.50 seconds: \n"
    lines = [digits * 4, "user\nassistant\nsystem\n" * 4]
    words = (*COLORS, *SHAPES, *NUMBERS, *PLACES, *MOTIONS, "yes", "no", NOTHING, "up", "down")
    words += ("stop", "go", "hello", "robot", "Answer", "question")
    for word in words:
        lines += [f"{word}\n", f"Say {word}.\n", f" {word}\n"]
    for shape in SHAPES:
        lines += [
            f"What color is the {shape}?\nWhere is the {shape}?\nIs there a {shape}?\n",
            f"How does the {shape} move?\n",
            *(f"a {color} {shape}, the {color} {shape} appeared\n" for color in COLORS),
        ]
    lines += [f"What shape is the {color} one?\n" for color in COLORS]
    lines += ["How many shapes are there?\nWhat do you see?\nWhat changed?\n"] * 4
    lines += [f"{ANSWER_IT}\n{WHICH_WORD}\nthe disappeared\nWhat is plus\n"] * 4
    return "".join(lines)
