"""Several answers to one question, how likely each token was, and what a client changes of it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from bounded_engine import BoundedEngine

from edge.clock import VirtualClock
from edge.errors import ProtocolError
from edge.model.constrain import grammar_of_choice
from edge.model.grammars import vocabulary
from edge.model.prompt import ChatTemplate
from edge.model.sampling import Sampling
from edge.model.tokenizer import Tokenizer
from edge.session.answer import Answering
from edge.session.confidence import chance
from edge.session.context import LiveContext
from edge.session.live_prompt import LivePrompt
from edge.session.turn import Chance, ChoiceDone, Done, Message, Question, TextDelta, Turn

HOT = Sampling(temperature=1.0, seed=7)


class Session:
    """A fresh context on the base preset, and its prompt."""

    def __init__(self, engine, folder):
        self.engine = engine
        self.prompt = LivePrompt(Tokenizer(folder), ChatTemplate(folder), system="Be brief.")
        anchor, separator = self.prompt.anchor(), self.prompt.separator()
        self.context = LiveContext(engine, anchor, separator, max_tokens=400, keep_tokens=200)

    def ask(self, give_way_after=(), **settings):
        """The events of one question, its end the last; it gives way after some steps."""
        events = []
        settings = {"max_tokens": 9, "sampling": HOT, **settings}
        turn = Turn(Question((Message("user", "Hello"),), **settings), 0, events.append)
        answering = Answering(self.prompt, turn, VirtualClock())
        answering.begin(self.context)
        done, n_steps = None, 0
        while done is None:
            done, n_steps = answering.step(), n_steps + 1
            if n_steps in give_way_after and done is None:
                answering.give_way()
                answering.begin(self.context)
        answering.give_way()
        return [*events, done]


@pytest.fixture
def session(bundle, engine):
    return Session(engine("base"), bundle("base"))


def texts(events):
    """Of each answer."""
    found = [""]
    for event in events:
        if isinstance(event, ChoiceDone):
            found.append("")
        elif isinstance(event, TextDelta):
            found[-1] += event.text
    return found


def alone(session, n=3):
    return ["".join(texts(session.ask(sampling=replace(HOT, seed=HOT.seed + k)))) for k in range(n)]


def test_several_answers_are_those_of_the_seeds_that_follow(session):
    expected = alone(session)
    assert len(set(expected)) == 3
    events = session.ask(n_choices=3)
    assert texts(events) == expected
    done = events[-1]
    assert isinstance(done, Done)
    n_tokens = [session.ask(sampling=replace(HOT, seed=HOT.seed + k))[-1] for k in range(3)]
    assert done.n_completion_tokens == sum(one.n_completion_tokens for one in n_tokens)
    assert done.n_prompt_tokens == n_tokens[0].n_prompt_tokens
    assert [e.finish_reason for e in events if isinstance(e, ChoiceDone)] == [
        one.finish_reason for one in n_tokens[:2]
    ]
    assert session.context.n_tokens == len(session.prompt.anchor())


@pytest.mark.parametrize("steps", [(1,), (3,), (4, 9), (12,), tuple(range(2, 30, 5))])
def test_answers_that_give_way_are_the_same(session, steps):
    assert texts(session.ask(n_choices=3, give_way_after=steps)) == alone(session)


def test_answers_without_room_to_remember_the_prompt_are_the_same(bundle, engine):
    bounded = BoundedEngine(engine("base")._inner, max_snapshots=1)
    session = Session(bounded, bundle("base"))
    assert texts(session.ask(n_choices=3)) == alone(session)


def test_the_prompt_is_prefilled_once(session, monkeypatch):
    n_rows = []
    prefill = session.engine._inner.prefill
    monkeypatch.setattr(
        session.engine._inner,
        "prefill",
        lambda s, rows: n_rows.append(len(rows)) or prefill(s, rows),
    )
    session.ask()
    once, n_rows[:] = [*n_rows], []
    session.ask(n_choices=4)
    assert [n for n in n_rows if n > 1] == [n for n in once if n > 1]  # decoding is by ones


def test_each_answer_follows_the_format(session):
    events = session.ask(n_choices=3, grammar=grammar_of_choice(["red", "green"]))
    assert set(texts(events)) <= {"red", "green"}
    assert len(texts(events)) == 3


def test_the_prompt_is_kept_only_while_an_answer_is_to_come(bundle, engine):
    """A device has few snapshots: one is of the fork."""
    bounded = BoundedEngine(engine("base")._inner)
    session = Session(bounded, bundle("base"))
    turn = Turn(Question((Message("user", "Hello"),), HOT, 4, n_choices=3), 0, lambda _: None)
    answering = Answering(session.prompt, turn, VirtualClock())
    answering.begin(session.context)
    n_used, done = {}, None
    while done is None:
        done = answering.step()
        if answering.has_begun and done is None:
            n_used[answering._n_choices_done] = bounded.n_used["snapshots"]
    assert n_used == {0: 2, 1: 2, 2: 1}


# How likely each token was.


def chances(events):
    return [event for event in events if isinstance(event, Chance)]


def spelled(events):
    """What the tokens spell; a random model says bytes that are no character, too."""
    return b"".join(one.said.token for one in chances(events)).decode("utf-8", "replace")


def ids(session):
    """Bytes -> the token that spells them."""
    n_vocab = session.engine.spec.decoder.vocab_size
    known = vocabulary(
        session.prompt.tokenizer, n_vocab, (session.prompt.tokenizer.special.turn_end,)
    )
    return {known.spell(token): token for token in session.prompt.tokenizer.tokens()}


def test_chances_are_the_log_softmax_of_what_the_engine_gives(session):
    textless = tuple((t, -100.0) for t in range(512) if not session.prompt.tokenizer.decode([t]))
    settings = replace(HOT, frequency_penalty=1.5, logit_bias=textless)
    events = session.ask(n_alternatives=5, sampling=settings)
    said = chances(events)
    assert spelled(events) == texts(events)[0]
    engine, tokens = session.engine, ids(session)
    question = Question((Message("user", "Hello"),), HOT, 1)
    asked = session.prompt.question(question, after_media=False)
    state = engine.new_state()
    logits = engine.prefill(state, engine.embed(np.concatenate([session.prompt.anchor(), asked])))
    for one in said:
        wide = logits.astype(np.float64)
        expected = wide - np.log(np.exp(wide - wide.max()).sum()) - wide.max()
        token = tokens[one.said.token]
        # The session prefills in other pieces, which differ by 1e-6; other tokens by 0.1.
        np.testing.assert_allclose(one.said.logprob, expected[token], atol=1e-5)
        best = np.sort(expected)[::-1][:5]
        np.testing.assert_allclose([other.logprob for other in one.others], best, atol=1e-5)
        logits = engine.decode(state, token)
    assert len(said) == 9


def test_a_format_leaves_only_what_it_allows(session):
    events = session.ask(n_alternatives=20, grammar=grammar_of_choice(["red", "green"]))
    said = chances(events)
    assert spelled(events) == texts(events)[0]
    for one in said:
        assert 1 <= len(one.others) <= 20
        assert sum(np.exp(other.logprob) for other in one.others) == pytest.approx(1.0, abs=1e-9)
        assert all(np.isfinite(other.logprob) for other in one.others)


def test_neither_thinking_nor_the_end_of_the_answer_is_told(session, monkeypatch):
    tokenizer = session.prompt.tokenizer
    words = [*tokenizer.encode("hm"), 13, *tokenizer.encode("red"), 11]
    script = iter(words)
    monkeypatch.setattr("edge.model.sampling.Sampler.choose", lambda *_: int(next(script)))
    events = session.ask(thinking=True, n_alternatives=0, max_tokens=30)
    assert spelled(events) == "red"
    assert events[-1].n_reasoning_tokens == words.index(13) + 1
    assert all(one.others == () for one in chances(events))


def test_a_chance_comes_before_the_text_that_it_completes(session):
    events = [e for e in session.ask(n_alternatives=0) if isinstance(e, Chance | TextDelta)]
    assert len(events) > 5
    for k in range(1, len(events)):
        told = events[:k]
        assert spelled(told).startswith(texts(told)[0].rstrip("\ufffd"))
    assert not any(isinstance(event, Chance) for event in session.ask())


# What a client changes.


def test_a_bias_forbids_and_forces(session):
    greedy = Sampling()
    first = session.ask(sampling=greedy, n_alternatives=2)
    said, other = (one.token for one in chances(first)[0].others)
    tokens = ids(session)
    forbidden = Sampling(logit_bias=((tokens[said], -100.0),))
    assert chances(session.ask(sampling=forbidden, n_alternatives=0))[0].said.token == other
    forced = Sampling(logit_bias=((tokens[b"a"], 100.0),))
    assert texts(session.ask(sampling=forced)) == ["a" * 9]


def test_a_bias_for_a_token_that_is_none_is_refused(session):
    n_vocab = session.engine.spec.decoder.vocab_size
    with pytest.raises(ProtocolError, match=f"logit_bias: names token {n_vocab}"):
        session.ask(sampling=Sampling(logit_bias=((n_vocab, 1.0),)))


def test_a_repetition_penalty_knows_the_prompt(session, monkeypatch):
    read = []
    monkeypatch.setattr(
        "edge.model.penalties.Penalties.read", lambda self, tokens: read.append(list(tokens))
    )
    session.ask(sampling=Sampling(repetition_penalty=1.2), give_way_after=(3,))
    prompt = session.prompt
    question = Question((Message("user", "Hello"),), Sampling(), 1)
    whole = [*prompt.anchor(), *prompt.question(question, after_media=False)]
    assert [tokens for tokens in read if tokens] == [whole]


def test_a_question_with_all_of_it_can_be_recorded():
    """Replays read questions from JSON."""
    from edge.session import record

    sampling = replace(HOT, logit_bias=((3, -1.5),), min_p=0.1, repetition_penalty=1.1)
    question = Question(
        (Message("user", "x"),), sampling, 5, n_choices=2, n_alternatives=3, channel="operator"
    )
    topic, content = record._content(question)
    assert record._item(topic, json.loads(json.dumps(content))) == question


def test_among_equally_likely_tokens_the_first_ones_are_told():
    logits = np.zeros(300, np.float32)
    logits[7] = 1.0
    found = chance(logits, 250, 4, lambda token: str(token).encode())
    assert [int(other.token) for other in found.others] == [7, 0, 1, 2]
    assert int(found.said.token) == 250
    assert found.others[0].logprob == pytest.approx(1 - np.log(299 + np.e))
    assert found.said.logprob == found.others[1].logprob
    assert chance(logits, 250, 0, lambda token: b"").others == ()
