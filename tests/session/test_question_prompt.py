"""Long questions are written beside the loop: same tokens, nobody waits, users take turns."""

from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from test_loop import TIMEOUT_S, Asker, make, running
from test_outside import MEDIA, N_TEXTS, folder, prompt, question

from edge.errors import CapacityError, ProtocolError
from edge.model.grammars import CHARGE
from edge.model.sampling import Sampling
from edge.session import question_prompt
from edge.session.question_prompt import LONG, PromptWriter, QuestionPrompt, is_long
from edge.session.turn import Done, Failed, Message, Question, ToolCall, Turn
from edge.types import Picture

__all__ = ["folder", "make", "prompt"]


def called(arguments):
    """A conversation in which the model has called a tool with these."""
    calls = (ToolCall("look", arguments),)
    return Message("user", "?"), Message("assistant", "", calls=calls), Message("tool", "nothing")


def thought(text):
    return Message("user", "?"), Message("assistant", "!", reasoning=text), Message("user", "?")


SAID = {
    "text": lambda part: (Message("user", part * LONG),),
    "reasoning": lambda part: thought(part * LONG),
    "arguments": lambda part: called({"at": [[part] * LONG]}),
    "names": lambda part: called({f"{part}{i}": {} for i in range(LONG)}),
}


ROOM = 1 << 20


def asked(messages, **more):
    return Question(tuple(messages), Sampling(), 2, **more)


@pytest.mark.parametrize("what", SAID)
@pytest.mark.parametrize("part", ["a ", "<|im_end|>"])
@pytest.mark.parametrize("after_media", [False, True])
def test_what_is_written_beside_the_loop_has_the_same_tokens(prompt, what, part, after_media):
    one = asked(SAID[what](part))
    assert is_long(one)
    prepared = QuestionPrompt(prompt, one)
    prepared.prepare(ROOM)
    ids = prepared.ids(after_media=after_media)
    assert ids.tolist() == prompt.question(one, after_media=after_media).tolist()


@pytest.mark.parametrize("text", ["word", "<think>", "long " * 4000, "<s>" * 4000])
def test_media_stand_where_they_stood(prompt, text):
    one = question([text] * N_TEXTS)
    prepared = QuestionPrompt(prompt, one)
    prepared.prepare(ROOM)
    ids = prepared.ids(after_media=True, attached=MEDIA)
    assert ids.tolist() == prompt.question(one, after_media=True, attached=MEDIA).tolist()


def test_a_long_text_has_the_tokens_of_a_short_one(prompt, monkeypatch):
    one = asked([Message("user", "Where is the red cup?\n\n  Say é or 7.5. " * 300)])
    apart = prompt.question(one, after_media=False)
    monkeypatch.setattr("edge.model.outside.LONG", 1 << 30)
    assert prompt.question(one, after_media=False).tolist() == apart.tolist()


def test_what_was_written_is_not_written_again(prompt, monkeypatch):
    one = asked([Message("user", "a" * LONG, (Picture(bytes(48), 4, 4),))])
    prepared = QuestionPrompt(prompt, one)
    prepared.prepare(ROOM)
    monkeypatch.setattr(type(prompt), "text", None)
    encoded = []
    monkeypatch.setattr(
        prompt.tokenizer, "encode_as_text", lambda text: encoded.append(text) or [7]
    )
    ids = prepared.ids(after_media=False, attached=MEDIA)
    assert prepared.ids(after_media=False, attached=MEDIA) is ids
    assert all(len(text) < LONG for text in encoded)


def test_of_a_question_that_waits_only_its_tokens_are_kept(prompt):
    one = QuestionPrompt(prompt, asked([Message("user", "a " * LONG)]))
    one.prepare(ROOM)
    assert one._texts == {}
    assert all(attached == () for _, attached in one._ids)
    one = QuestionPrompt(prompt, asked([Message("user", "a " * LONG, (Picture(bytes(48), 4, 4),))]))
    one.prepare(ROOM)
    assert one._ids == {}
    assert set(one._texts) == {False, True}


def test_what_has_no_room_in_the_model_is_refused_when_it_is_written_and_not_kept(prompt):
    one = asked([Message("user", "a " * LONG)])
    n_tokens = len(prompt.question(one, after_media=True))
    fits = QuestionPrompt(prompt, one)
    fits.prepare(n_tokens + one.max_tokens)
    assert len(fits.ids(after_media=True)) == n_tokens
    large = QuestionPrompt(prompt, one)
    large.prepare(n_tokens + one.max_tokens - 1)
    assert large._ids == large._texts == {}
    with pytest.raises(CapacityError, match=f"of {n_tokens} tokens and an answer of up to 2"):
        large.ids(after_media=True)


@pytest.mark.parametrize(
    "messages",
    [
        (Message("user", "a" * (LONG - 1)),),
        (Message("user", "?"), Message("assistant", "!"), Message("user", "a" * (LONG // 2))),
        called({"at": [1] * (LONG // 2)}),
    ],
)
def test_what_is_short_is_not(messages):
    assert not is_long(asked(messages))


def test_tools_count_where_they_may_be_called():
    tools = ({"type": "function", "function": {"name": "look", "description": "a" * LONG}},)
    one = asked([Message("user", "?")], tools=tools)
    assert not is_long(one)
    assert is_long(replace(one, channel="operator"))


STOPPING = "service: is stopping; ask again later"


class Slow(QuestionPrompt):
    """Is written when it may be."""

    def __init__(self):
        self.may, self.begun = threading.Event(), threading.Event()

    def prepare(self, n_room):
        self.begun.set()
        assert self.may.wait(TIMEOUT_S)


class Quick(QuestionPrompt):
    """Is written at once."""

    def __init__(self):
        pass

    def prepare(self, n_room):
        pass


def writing(put):
    """A writer that has begun."""
    writer = PromptWriter(threading.RLock(), ROOM, put)
    writer.begin()
    return writer


def ended(writer):
    """It writes no more, and its thread is gone."""
    writer.end()
    for one in threading.enumerate():
        if one.name == "prompts":
            one.join(TIMEOUT_S)
            assert not one.is_alive()


def turn(user, prompt):
    return Turn(asked([Message("user", "?")], user=user), 0, lambda _: None, prompt=prompt)


def test_whose_user_was_served_longest_ago_is_written_first():
    prompts = {name: Slow() for name in ("a1", "a2", "a3", "b1", "c1")}
    written, some = [], threading.Semaphore(0)
    names = {}

    def put(one):
        written.append(names[id(one.prompt)])
        some.release()

    writer = writing(put)
    for name, one in prompts.items():
        names[id(one)] = name
        writer.write(turn(name[0], one))
        if name == "a1":
            assert one.begun.wait(TIMEOUT_S)
    assert len(writer) == 5
    for one in prompts.values():
        one.may.set()
    for _ in prompts:
        assert some.acquire(timeout=TIMEOUT_S)
    assert written == ["a1", "b1", "c1", "a2", "a3"]
    ended(writer)


def test_who_was_served_is_forgotten_once_nobody_waits():
    written, some = [], threading.Semaphore(0)

    def put(one):
        written.append(one.question.user)
        some.release()

    writer = writing(put)
    writer.write(turn("a", None))
    assert some.acquire(timeout=TIMEOUT_S)
    by_s = time.monotonic() + TIMEOUT_S
    while writer._taken:
        assert time.monotonic() < by_s
    first = Slow()
    for user, one in (("c", first), ("a", None), ("b", None)):
        writer.write(turn(user, one))
    first.may.set()
    for _ in range(3):
        assert some.acquire(timeout=TIMEOUT_S)
    assert written == ["a", "c", "a", "b"]
    ended(writer)


def test_what_was_written_is_held_no_longer():
    some, held = threading.Event(), []

    def put(one):
        held.append(weakref.ref(one.prompt))
        some.set()

    writer = writing(put)
    writer.write(turn("a", Quick()))
    assert some.wait(TIMEOUT_S)
    by_s = time.monotonic() + TIMEOUT_S
    while held[0]() is not None:
        assert time.monotonic() < by_s
    ended(writer)


def test_what_is_handed_on_is_counted_once_and_always():
    """Whoever holds the lock finds a turn with the writer or where it is put, not in both."""
    lock, found, some = threading.RLock(), [], threading.Event()

    def put(one):
        with ThreadPoolExecutor(1) as of_another:
            may_look = of_another.submit(lock.acquire, blocking=False).result()
        found.append((len(writer), may_look))
        some.set()

    writer = PromptWriter(lock, ROOM, put)
    writer.begin()
    writer.write(turn("a", None))
    assert some.wait(TIMEOUT_S)
    assert found == [(0, False)]
    ended(writer)


def test_whoever_ends_the_writer_has_what_waits_and_what_is_written():
    put = []
    writer, first = writing(put.append), Slow()
    turns = [turn("a", first), turn("a", None), turn("b", None)]
    for one in turns:
        writer.write(one)
    assert first.begun.wait(TIMEOUT_S)
    assert writer.end() == turns
    assert len(writer) == 0
    first.may.set()
    ended(writer)
    assert put == []


def test_whoever_asks_is_charged(prompt):
    charged, some = [], threading.Event()
    one = asked([Message("user", "a " * 50_000)])
    writer = writing(lambda _: some.set())
    token = CHARGE.set(charged.append)
    try:
        writer.write(Turn(one, 0, lambda _: None, prompt=QuestionPrompt(prompt, one)))
    finally:
        CHARGE.reset(token)
    assert some.wait(TIMEOUT_S)
    assert len(charged) == 1
    assert 0.001 < charged[0] < 30
    ended(writer)


def test_others_are_answered_while_a_long_question_is_written(make, monkeypatch):
    may, begun = threading.Event(), threading.Event()

    def prepare(self, n_room):
        begun.set()
        assert may.wait(TIMEOUT_S)

    monkeypatch.setattr(question_prompt.QuestionPrompt, "prepare", prepare)
    loop = make()
    thread, failures = running(loop)
    long, short = Asker(loop), Asker(loop)
    while not loop._runs:
        pass
    long.ask("a" * LONG)
    assert begun.wait(TIMEOUT_S)
    assert loop.n_turns == 1
    short.ask()
    assert short.ended.wait(TIMEOUT_S)
    assert not long.ended.is_set()
    may.set()
    assert long.ended.wait(TIMEOUT_S)
    loop.stop()
    thread.join(TIMEOUT_S)
    assert failures == []
    assert isinstance(long.events[-1], Done | Failed)


def test_what_cannot_be_written_ends_its_turn_only(make, monkeypatch):
    loop = make()
    thread, failures = running(loop)
    while not loop._runs:
        pass
    one, other = Asker(loop), Asker(loop)
    with monkeypatch.context() as patched:
        patched.setattr(type(loop._prompt), "text", refuse)
        one.ask("a" * LONG)
        assert one.ended.wait(TIMEOUT_S)
    assert isinstance(one.events[-1], Failed)
    assert "are odd" in str(one.events[-1].error)
    other.ask()
    assert other.ended.wait(TIMEOUT_S)
    loop.stop()
    thread.join(TIMEOUT_S)
    assert failures == []


def refuse(*_, **__):
    raise ProtocolError("messages", "are odd", "send others")


def test_those_that_are_written_have_places_like_those_that_wait(make, monkeypatch):
    may, begun = threading.Event(), threading.Event()

    def prepare(_, n_room):
        begun.set()
        assert may.wait(TIMEOUT_S)

    monkeypatch.setattr(question_prompt.QuestionPrompt, "prepare", prepare)
    loop = make(socket={"max_waiting": 2})
    thread, _ = running(loop)
    while not loop._runs:
        pass
    askers = [Asker(loop) for _ in range(2)]
    for one in askers:
        one.ask("a" * LONG)
    with pytest.raises(CapacityError, match="2 others are waiting already"):
        Asker(loop).ask("a" * LONG)
    assert begun.wait(TIMEOUT_S)
    loop.stop()
    thread.join(TIMEOUT_S)
    for one in askers:  # told at once, though a prompt is still written
        assert [str(event.error) for event in one.events] == [STOPPING]
    (writing,) = [one for one in threading.enumerate() if one.name == "prompts"]
    may.set()
    writing.join(TIMEOUT_S)
    assert not writing.is_alive()
    assert [len(one.events) for one in askers] == [1, 1]
    assert loop.n_turns == 0
