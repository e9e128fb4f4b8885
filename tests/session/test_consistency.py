"""Where an answer comes from: by the small trained model, by rule, undisturbing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_loop import chunk, drive, frame, make, put
from test_priorities import Journal, until_begun
from test_pruning import folder, trained
from test_triggers import scene_frames

from edge.clock import NS_PER_S, VirtualClock
from edge.errors import CapacityError, ProtocolError, TurnError
from edge.model.constrain import grammar_of_choice
from edge.model.prompt import ChatTemplate
from edge.model.sampling import Sampling
from edge.model.tokenizer import Tokenizer
from edge.session.answer import answer
from edge.session.consistency import LIKELY, Followed, judged
from edge.session.context import LiveContext
from edge.session.live_prompt import LivePrompt
from edge.session.perceive import Listener, Watcher, WindowCollector, encoded
from edge.session.slot import Slots
from edge.session.turn import Done, Message, Question, TextDelta, Turn
from edge.types import AudioChunk

__all__ = ["folder", "make", "trained"]
pytest_plugins = ["media"]
CIRCLE, SQUARE = 0, 1
WORD, COUNT = "Which word was said?", "How many shapes are there?"


@pytest.fixture
def tell(folder, trained):
    """Ask the trained model about what is shown and said, and where its answer comes from."""
    tokenizer, clock = Tokenizer(folder), VirtualClock()
    prompt = LivePrompt(tokenizer, ChatTemplate(folder), "")

    def ask(text, shapes=(), said=None, **settings):
        limits = {"max_tokens": 400, "keep_tokens": 200}
        context = LiveContext(trained, prompt.anchor(), prompt.separator(), **limits)
        senses = [Watcher(trained, tokenizer, clock, 0)]
        senses.append(Listener(trained, tokenizer, clock, WindowCollector(30.0)))
        for shown in scene_frames(0, shapes) if shapes else ():
            senses[0].take(shown)
        if said is not None:
            senses[1].take(AudioChunk(said, NS_PER_S, "microphone"))
            senses[1].flush()
        for sense in senses:
            context.append(*(seen.perceived for seen in encoded(sense)))
        events = []
        question = Question((Message("user", text),), Sampling(), 12, consistency=True, **settings)
        done = answer(context, prompt, Turn(question, 0, events.append), clock)
        return "".join(event.text for event in events), done

    return ask


def test_the_trained_model_tells_what_it_saw_from_what_it_heard(tell, say):
    room = 0.002 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    seen, done = tell("What color is the square?", [SQUARE], room)
    assert (seen, done.consistency.verdict) == ("red", "seen")
    assert done.consistency.seen > 0.9 > 0.1 > max(done.consistency.heard, done.consistency.nothing)
    heard, done = tell(WORD, [CIRCLE], say("hello"))
    assert (heard, done.consistency.verdict) == ("hello", "heard")
    assert done.consistency.heard > 0.9 > 0.1 > done.consistency.nothing
    # Without the one sense it is the other one.
    _, done = tell("What color is the square?", [SQUARE])
    assert (done.consistency.verdict, done.consistency.heard) == ("seen", None)
    _, done = tell(WORD, said=say("hello"))
    assert (done.consistency.verdict, done.consistency.seen) == ("heard", None)


def test_one_sense_against_the_other(tell, say):
    for settings in ({}, {"grammar": grammar_of_choice(["one", "two", "three"])}):
        text, done = tell(COUNT, [SQUARE], say("one"), **settings)
        assert (text, done.consistency.verdict) == ("one", "seen")
        text, done = tell(COUNT, [SQUARE], say("three"), **settings)
        assert (text, done.consistency.verdict) == ("one", "contradicted")


def test_what_the_model_says_in_any_case_is_from_neither(tell, say):
    text, done = tell("Say red.", [CIRCLE], say("hello"))
    assert (text, done.consistency.verdict) == ("red", "neither")
    assert done.consistency.nothing > 0.9


def followed(likelihood, *favourites):
    return Followed(likelihood, favourites)


SURE, UNSURE = 0.9, 0.2
NOTHING = followed(UNSURE, (9, SURE), (9, SURE))
GIVES = followed(SURE, (1, SURE), (2, SURE))
SILENT = followed(UNSURE, (9, SURE), (9, SURE))
OBJECTS = followed(UNSURE, (1, SURE), (5, LIKELY))


@pytest.mark.parametrize(
    ("seen", "heard", "verdict"),
    [
        (GIVES, SILENT, "seen"),
        (GIVES, None, "seen"),
        (SILENT, GIVES, "heard"),
        (None, GIVES, "heard"),
        (GIVES, GIVES, "both"),
        (SILENT, SILENT, "neither"),
        (None, None, "neither"),
        (GIVES, OBJECTS, "contradicted"),
        (OBJECTS, GIVES, "contradicted"),
        (OBJECTS, None, "contradicted"),
        # Not sure enough to object, though unlike what is said without any sense.
        (GIVES, followed(UNSURE, (1, SURE), (5, LIKELY - 0.01)), "seen"),
        # What comes after the first other token is about another answer.
        (GIVES, followed(UNSURE, (9, SURE), (5, SURE)), "seen"),
    ],
)
def test_the_verdict(seen, heard, verdict):
    found = judged([1, 2], NOTHING, seen, heard)
    assert found.verdict == verdict
    assert (found.seen, found.heard) == tuple(s and s.likelihood for s in (seen, heard))


def test_an_answer_that_is_likely_without_senses_is_given_by_none():
    anyway = followed(LIKELY, (1, SURE), (2, SURE))
    assert judged([1, 2], anyway, GIVES, GIVES).verdict == "neither"


def perceived(loop):
    put(loop, [frame(0), frame(1)], [chunk(i) for i in range(3)])
    drive(loop)


def test_the_numbers_are_those_of_fresh_states(make):
    loop = make()
    perceived(loop)
    engine, prompt, context = loop._context.engine, loop._prompt, loop._context
    journal = Journal(loop)
    journal.ask("asked", 6, consistency=True)
    drive(loop)
    done = journal.of("asked")[-1]
    question = Question((Message("user", "Hello"),), Sampling(), 6)
    tokens = []
    with context.fork() as fork:
        logits = engine.prefill(
            fork.state, engine.embed(prompt.question(question, after_media=True))
        )
        while len(tokens) < done.n_completion_tokens:
            tokens.append(int(logits.argmax()))
            logits = engine.decode(fork.state, tokens[-1])
    assert prompt.tokenizer.decode(tokens) == journal.text("asked")
    for found, modality in (
        (done.consistency.seen, "video"),
        (done.consistency.heard, "audio"),
        (done.consistency.nothing, None),
    ):
        state, total = engine.new_state(), 0.0
        rows = [engine.embed(prompt.anchor()), *(p.embeddings for p in context.kept(modality))]
        asked = prompt.question(question, after_media=modality is not None)
        logits = engine.prefill(state, np.concatenate([*rows, engine.embed(asked)]))
        for token in tokens:
            likely = np.exp(logits.astype(np.float64) - logits.max())
            total += math.log(likely[token] / likely.sum())
            logits = engine.decode(state, token)
        assert found == pytest.approx(math.exp(total / len(tokens)), abs=1e-3)


def test_an_answer_that_its_format_decides_is_certain_to_every_state(make):
    loop = make()
    perceived(loop)
    journal = Journal(loop)
    journal.ask("asked", 6, consistency=True, grammar=grammar_of_choice(["7"]))
    drive(loop)
    found = journal.of("asked")[-1].consistency
    assert journal.text("asked") == "7"
    assert (found.seen, found.heard, found.nothing) == (1.0, 1.0, 1.0)
    assert found.verdict == "neither"


def test_the_answer_comes_first_and_the_live_state_stays_as_it_was(make):
    loop = make()
    perceived(loop)
    plain, checked = Journal(loop), Journal(loop)
    plain.ask("one", 6)
    drive(loop)

    def decoded():
        with loop._context.fork() as fork:
            return loop._context.engine.decode(fork.state, 5)

    before, n_tokens = decoded(), loop._context.n_tokens
    checked.ask("one", 6, consistency=True)
    n_steps = 0
    while not checked.done("one"):
        assert loop.step()
        n_steps += checked.text("one") == plain.text("one")
    assert n_steps > 3 * 6  # three states follow six tokens after all is said
    assert checked.text("one") == plain.text("one")
    np.testing.assert_array_equal(decoded(), before)
    assert loop._context.n_tokens == n_tokens
    assert plain.of("one")[-1].consistency is None


def until_checking(loop):
    while not (loop._answers._open and loop._answers._open[0].is_checking):
        assert loop.step()


def test_another_question_goes_first_and_the_check_goes_on(make):
    loop = make()
    perceived(loop)
    alone, journal = Journal(loop), Journal(loop)
    alone.ask("checked", 6, consistency=True)
    drive(loop)
    journal.ask("checked", 6, consistency=True)
    until_checking(loop)
    journal.ask("urgent", 4)
    until_begun(loop, journal, "urgent", 1)
    while not journal.done("urgent"):
        assert loop.step()
    assert not journal.done("checked")
    loop.step()
    loop._context.open_fork()  # the check stands beside the context: nothing is open there
    loop._context.close_fork()
    drive(loop)
    assert journal.done("checked")
    assert journal.of("checked")[-1].consistency == alone.of("checked")[-1].consistency


def test_a_check_that_ends_early_leaves_a_complete_answer(make):
    loop = make()
    perceived(loop)
    journal = Journal(loop)
    turn = journal.ask("gone", 6, consistency=True, remember=True)
    until_checking(loop)
    turn.cancel()
    drive(loop)
    done = journal.of("gone")[-1]
    assert (done.finish_reason, done.consistency) == ("length", None)
    assert loop._context.ledger[-1].modality == "text"  # remembered, once
    assert [s.modality for s in loop._context.ledger].count("text") == 2


@pytest.mark.parametrize(
    "error",
    [
        CapacityError("states", "all 4 are in use", "ask again later"),
        ProtocolError("answer", "has no such format", "ask for another"),
        TurnError("question", "cannot be answered", "report it"),
        OSError("the device is gone"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_where_no_state_can_be_asked_it_is_not_known(make, monkeypatch, error):
    loop = make()
    perceived(loop)
    journal = Journal(loop)
    journal.ask("asked", 6, consistency=True)

    def fail(*_):
        raise error

    monkeypatch.setattr(Slots, "of", fail)
    drive(loop)
    done = journal.of("asked")[-1]
    assert isinstance(done, Done)
    assert (done.finish_reason, done.consistency) == ("length", None)
    assert any(isinstance(event, TextDelta) for event in journal.of("asked"))
