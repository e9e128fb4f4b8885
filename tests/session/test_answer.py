"""Answers: stop texts, thinking, and what a fork of the live context says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.clock import VirtualClock
from edge.errors import CapacityError
from edge.model.prompt import ChatTemplate
from edge.model.sampling import Sampling
from edge.model.tokenizer import Tokenizer
from edge.session.answer import Answering, answer
from edge.session.answers import Answers
from edge.session.context import LiveContext
from edge.session.live_prompt import LivePrompt
from edge.session.speech import Speech, StopTexts
from edge.session.turn import Message, Question, TextDelta, ToolCall, Turn


@given(
    text=st.text(alphabet="abc", max_size=30),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=6),
)
def test_stop_texts_cut_the_same_however_the_text_arrives(text, stops, cuts):
    cutter = StopTexts(tuple(stops))
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    got = "".join(cutter.push(piece) for piece in pieces) + cutter.flush()
    found = [text.find(stop) for stop in stops if stop in text]
    if not found:
        assert got == text
        assert not cutter.reached
    else:
        assert cutter.reached
        # In pieces the stop that is complete first wins; at once it is the leftmost.
        assert any(got + stop == text[: len(got) + len(stop)] for stop in stops)


class Counting(str):
    """A text that counts how many characters of it were looked at."""

    n_characters = 0

    def __getitem__(self, part):
        found = super().__getitem__(part)
        Counting.n_characters += len(found)
        return found


def test_what_a_token_costs_does_not_grow_with_a_stop_text():
    def looked_at(n_stop):
        Counting.n_characters = 0
        cutter = StopTexts((Counting("ab" * (n_stop // 2)),))
        for _ in range(20):
            cutter.push("ab c ")
        return Counting.n_characters

    assert 0 < looked_at(100) == looked_at(20_000)


@pytest.fixture
def parts(bundle, engine):
    """A fresh context on the base preset, and its prompt."""
    folder = bundle("base")
    prompt = LivePrompt(Tokenizer(folder), ChatTemplate(folder), system="Be brief.")
    context = LiveContext(
        engine("base"), prompt.anchor(), prompt.separator(), max_tokens=400, keep_tokens=200
    )
    return context, prompt


def ask(parts, text="Hello", **settings):
    context, prompt = parts
    settings = {"max_tokens": 12, "sampling": Sampling(), **settings}
    events = []
    messages = settings.pop("messages", (Message("user", text),))
    turn = Turn(Question(messages, **settings), 0, events.append)
    done = answer(context, prompt, turn, VirtualClock())
    return done, events


def test_the_prompt_is_the_templates_own(parts):
    _, prompt = parts
    question = Question((Message("user", "Hello"),), Sampling(), 1)
    ids = [*prompt.anchor(), *prompt.question(question, after_media=False)]
    whole = prompt.template.render(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        thinking=False,
    )
    assert ids == prompt.tokenizer.encode(whole).tolist()


def test_an_answer_is_greedy_decoding_of_the_prompt(parts):
    context, prompt = parts
    done, events = ask(parts, max_tokens=12)
    engine = context.engine
    state = engine.new_state()
    question = Question((Message("user", "Hello"),), Sampling(), 1)
    ids = np.concatenate([prompt.anchor(), prompt.question(question, after_media=False)])
    logits, expected = engine.prefill(state, engine.embed(ids)), []
    while len(expected) < 12 and int(logits.argmax()) not in engine.spec.sampling.stop_ids:
        expected.append(int(logits.argmax()))
        logits = engine.decode(state, expected[-1])
    assert "".join(event.text for event in events) == prompt.tokenizer.decode(expected)
    assert done.n_prompt_tokens == len(ids)
    assert context.n_tokens == len(prompt.anchor())


def test_the_same_question_twice_gets_the_same_answer(parts):
    first = ask(parts, sampling=Sampling(temperature=1.0, seed=5))
    ask(parts, "Something else?")
    again = ask(parts, sampling=Sampling(temperature=1.0, seed=5))
    assert first[1] == again[1]


def test_thinking_is_told_apart(parts, monkeypatch):
    _, prompt = parts
    words = [*prompt.tokenizer.encode("hm"), 13, *prompt.tokenizer.encode("red"), 11]
    script = iter(words)
    monkeypatch.setattr("edge.model.sampling.Sampler.choose", lambda *_: int(next(script)))
    done, events = ask(parts, thinking=True, max_tokens=20)
    thoughts = "".join(e.text for e in events if e.reasoning)
    spoken = "".join(e.text for e in events if not e.reasoning)
    assert (thoughts, spoken) == ("hm", "red")
    assert done.finish_reason == "stop"
    assert done.n_completion_tokens == len(words)


def test_a_stop_text_ends_the_answer(parts, monkeypatch):
    _, prompt = parts
    script = iter([*prompt.tokenizer.encode("one two three")] * 2)
    monkeypatch.setattr("edge.model.sampling.Sampler.choose", lambda *_: int(next(script)))
    done, events = ask(parts, stop=("two",), max_tokens=20)
    assert "".join(event.text for event in events) == "one "
    assert done.finish_reason == "stop"


def test_a_cancelled_turn_ends_at_the_next_token(parts):
    context, prompt = parts
    events: list[TextDelta] = []
    question = Question((Message("user", "Hello"),), Sampling(), 50)

    def deliver(event):
        events.append(event)
        turn.cancel()

    turn = Turn(question, 0, deliver)
    done = answer(context, prompt, turn, VirtualClock())
    assert done.finish_reason == "cancelled"
    assert done.n_completion_tokens < 5


def test_a_question_without_room_is_refused(parts):
    with pytest.raises(CapacityError, match="do not fit behind"):
        ask(parts, max_tokens=262144)


def test_a_requests_system_message_leads_the_question(parts):
    _, prompt = parts
    question = Question((Message("system", "In French."), Message("user", "Who?")), Sampling(), 1)
    text = prompt.tokenizer.decode(list(prompt.question(question, after_media=True)))
    assert text.startswith("\nIn French.\nWho?")


def test_a_remembered_turn_is_the_templates_own_conversation(parts):
    """The state after two remembered turns is that of the whole conversation, rendered at once."""
    context, prompt = parts
    engine, replies = context.engine, []
    n_before = context.n_tokens
    ask(parts, "Hello")
    assert context.n_tokens == n_before  # not remembered
    for text in ("Hello", "And now?"):
        _, events = ask(parts, text, remember=True)
        replies.append("".join(event.text for event in events if isinstance(event, TextDelta)))
        assert sum(segment.n_tokens for segment in context.ledger) == context.n_tokens
    messages = [{"role": "system", "content": "Be brief."}]
    for text, reply in zip(("Hello", "And now?"), replies, strict=True):
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": reply}]
    whole = prompt.template.render([*messages, {"role": "user", "content": "LAST"}], thinking=False)
    ids = prompt.tokenizer.encode(whole.partition("LAST")[0])
    state = engine.new_state()
    engine.prefill(state, engine.embed(ids))
    assert context.n_tokens == len(ids)
    with context.fork() as fork:
        got, wanted = engine.decode(fork.state, 5), engine.decode(state, 5)
    np.testing.assert_allclose(got, wanted, atol=2e-5 * np.abs(wanted).max())
    assert context.evidence() == ()  # a conversation is no evidence


def test_a_question_may_build_on_a_remembered_one(parts):
    forgotten, _ = ask(parts, "Hello", remember=True)
    first, _ = ask(parts, "Hello")
    assert first.n_prompt_tokens > forgotten.n_prompt_tokens


def test_what_was_said_before_a_tool_call_is_told_before_it(checkpoint):
    """It may have been held back as the start of a stop text; a call is no part of one."""
    tokenizer = Tokenizer(checkpoint("base"))
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    question = Question(
        *((Message("user", "Look"),), Sampling(), 20),
        stop=("here it is",),
        channel="operator",
        tools=(tool,),
    )
    events = []
    speech = Speech(tokenizer, Turn(question, 1, events.append))
    written = "<tool_call>\n<function=look>\n</function>\n</tool_call>"
    for token in tokenizer.encode(f"I look here{written} it is"):
        assert not speech.push(int(token))
    speech.finish("stop")
    called = events.index(ToolCall("look", {}))
    before, after = (
        "".join(e.text for e in part) for part in (events[:called], events[called + 1 :])
    )
    assert (before, after) == ("I look here", " it is")


@pytest.mark.parametrize("reason", ["stop", "length", "cancelled", "deadline"])
def test_only_an_answer_that_was_not_cut_off_is_remembered(parts, reason):
    context, prompt = parts
    n_before = context.n_tokens
    question = Question((Message("user", "Hello"),), Sampling(), 12, remember=True)
    answering = Answering(prompt, Turn(question, 0, lambda _: None), VirtualClock())
    answering.begin(context)
    while not answering.has_begun:
        answering.step()
    assert answering.end(reason).finish_reason == reason
    assert (context.n_tokens > n_before) is (reason in ("stop", "length"))
    assert not context.is_forked


def test_an_answer_that_ends_before_it_began_has_its_times_and_remembers_nothing(parts):
    context, prompt = parts
    n_before = context.n_tokens
    question = Question((Message("user", "Hello"),), Sampling(), 12, remember=True)
    turn = Turn(question, 40, lambda _: None)
    done = Answering(prompt, turn, VirtualClock(100)).end("cancelled")
    times = done.timeline
    assert (times.asked_ns, times.captured_ns, times.worked_ns) == (40, None, 0)
    assert (
        times.started_ns == times.prefilled_ns == times.first_token_ns == times.finished_ns == 100
    )
    assert (done.n_prompt_tokens, done.n_completion_tokens, done.confidence) == (0, 0, None)
    assert context.n_tokens == n_before


def test_the_stages_of_an_answer_have_their_times(parts):
    """Each is when it first came, and others' time between two steps is not the answer's."""
    context, prompt = parts
    clock = VirtualClock(1000)
    question = Question((Message("user", "Hello"),), Sampling(), 3)
    answering = Answering(prompt, Turn(question, 40, lambda _: None), clock)
    answering.begin(context)
    answering.give_way()
    clock.sleep_until(2000)
    answering.begin(context)
    done, steps_ns = None, []
    while done is None:
        clock.sleep_until(clock.now_ns() + 100)
        steps_ns.append(clock.now_ns())
        done = answering.step()
    times = done.timeline
    assert (times.started_ns, times.prefilled_ns) == (1000, 2100)
    assert times.first_token_ns == 2200
    assert times.finished_ns == steps_ns[-1]
    assert times.worked_ns == 0


def test_an_answer_that_is_cut_between_two_steps_has_worked_no_longer_than_they(parts):
    context, prompt = parts
    clock = VirtualClock(1000)
    question = Question((Message("user", "Hello"),), Sampling(), 12)
    answering = Answering(prompt, Turn(question, 40, lambda _: None), clock)
    answering.begin(context)
    answering.step()
    clock.sleep_until(2000)
    done = answering.end("cancelled")
    assert (done.timeline.worked_ns, done.timeline.finished_ns) == (0, 2000)
    assert context.n_tokens == len(prompt.anchor())


def test_a_tentative_turn_is_the_only_one(parts):
    context, prompt = parts
    turn = Turn(Question((Message("user", "Hello"),), Sampling(), 1), 0, lambda _: None)
    answers = Answers(prompt, VirtualClock(), lambda _: context, lambda *_: ())
    answers.open_tentatively(turn)
    with pytest.raises(RuntimeError, match="behind a tentative clip"):
        answers.open(turn)
    answers.settle()
    with pytest.raises(RuntimeError, match="beside others"):
        answers.open_tentatively(turn)
    assert len(answers) == 1
    assert not answers.is_tentative
