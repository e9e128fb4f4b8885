"""Grammars are followed in processes of their own: whose places they take, and how those end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
from contextvars import copy_context

import llguidance
import numpy as np
import pytest
from processes import descendants

from edge.child import places
from edge.errors import CapacityError, ProtocolError
from edge.model import constrain, grammars
from edge.model.constrain import Constraint, fill_frames, grammar_of_regex, grammar_of_schema
from edge.model.grammar_process import Tokens
from edge.model.grammars import Vocabulary

TIMEOUT_S = 60.0
FOR_EVER = "((a{100}){100}){100}"
SOON_S = 0.05
"""The patience of whoever answers, here."""
BYTES = Tokens([*(bytes([n]) for n in range(256)), b"<end>"], [256], [256], 257, "")


@pytest.fixture(scope="module")
def known():
    """Has a process already, so that nobody waits for its packages."""
    known = Vocabulary(BYTES)
    assert known.problem_of(regex("ready")) == ""
    return known


def regex(pattern):
    return llguidance.LLMatcher.grammar_from_regex(pattern)


def checked(known, user, pattern):
    """What a user hears of a pattern."""
    context = copy_context()
    context.run(grammars.USER.set, user)
    return context.run(known.problem_of, regex(pattern))


def is_known(known, pattern):
    """Whether an event loop can say at once that a pattern can be followed."""

    async def ask():
        return known.problem_of(regex(pattern)) == ""

    with contextlib.suppress(grammars.UncheckedError):
        return asyncio.run(ask())
    return False


def keeper_of(known):
    """The process above all others."""
    ours = descendants(os.getpid())
    return next(pid for pid in ours if command_of(pid).endswith(f" {known._file} "))


def command_of(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline") as file:
        return file.read().replace("\0", " ")
    return ""


@contextlib.contextmanager
def stopped(known):
    """Nothing comes of the keeper meanwhile."""
    pid = keeper_of(known)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def in_threads(*calls):
    """What they come to, in a list, once the block and they have ended."""
    ended = []

    def run(call):
        try:
            ended.append(call())
        except CapacityError as error:
            ended.append(error)

    threads = [threading.Thread(target=run, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    yield ended
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


def wait_until(holds):
    until_s = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < until_s
        time.sleep(0.001)


def test_a_user_with_slow_formats_leaves_room_for_others(known):
    slow = [lambda n=n: checked(known, "a", FOR_EVER + "b" * n) for n in range(3)]
    with stopped(known), in_threads(*slow) as ended:
        wait_until(lambda: ended)  # one more than its share
        assert isinstance(ended[0], CapacityError)
        with in_threads(lambda: checked(known, "b", "red|blue")) as others:
            wait_until(lambda: known._cores._taken["b"])
            os.kill(keeper_of(known), signal.SIGCONT)
    assert others == [""]


def test_the_places_of_a_user_are_free_again(known):
    for n in range(5):
        assert checked(known, "a", f"x{n}") == ""
    assert not known._queue._taken
    assert not known._cores._taken


def test_a_user_with_many_formats_drops_its_own(known):
    assert checked(known, "b", "mine") == ""
    for n in range(2 * grammars.MAX_FOLLOWERS):
        assert checked(known, "a", f"flood{n}") == ""
    assert is_known(known, "mine")
    assert is_known(known, f"flood{n}")
    assert not is_known(known, "flood0")


def test_an_event_loop_waits_for_no_process(known):
    """Not even while another thread has much to tell one that does not listen."""
    large = f"(?:{'ж' * 30_000})"
    with stopped(known), in_threads(lambda: checked(known, "a", large)) as ended:
        wait_until(lambda: known._cores._taken["a"])
        began_s = time.monotonic()
        while time.monotonic() < began_s + SOON_S:
            assert is_known(known, "ready")
            assert not ended
        os.kill(keeper_of(known), signal.SIGCONT)
    assert ended == [""]


def test_a_format_is_bounded_in_bytes():
    with pytest.raises(ProtocolError, match="more than 65536 bytes"):
        grammar_of_regex("ж" * 40_000)


@pytest.fixture
def hurried(known, monkeypatch):
    """Of a live session, whose loop waits for no more than a moment."""
    monkeypatch.setattr(known, "patience_s", SOON_S)
    monkeypatch.setattr(grammars, "_served", [known])
    return known


def test_an_answer_waits_only_so_long_for_its_grammar(hurried):
    with stopped(hurried):
        constraint = Constraint(hurried, regex("never seen"))
        with pytest.raises(CapacityError, match="not followed in time"):
            constraint.allow(np.zeros(257, np.float32))


def test_so_does_one_that_has_no_frame_to_name(hurried):
    frame = {"type": "string", "format": constrain.FRAME_FORMAT}
    grammar = grammar_of_schema({"anyOf": [frame, {"const": "none"}]})
    with stopped(hurried), pytest.raises(CapacityError, match=f"not checked in {SOON_S} s"):
        fill_frames(grammar, [])


def test_what_ends_from_outside_is_not_held_against_the_format(known):
    with (
        stopped(known) as pid,
        in_threads(lambda: checked(known, "a", "lost")) as ended,
    ):
        wait_until(lambda: known._followers.get(grammars._digest(regex("lost"))))
        os.kill(pid, signal.SIGKILL)
    (error,) = ended
    assert isinstance(error, CapacityError)
    assert "has lost the process" in str(error)
    assert checked(known, "a", "lost") == ""


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        (signal.SIGKILL, CapacityError, "has lost the process"),
        (signal.SIGPROF, ProtocolError, "more than 0.5 s of a core"),
        (signal.SIGABRT, ProtocolError, "more than 0.5 s of a core"),
    ],
    ids=["from outside", "for its time", "for its memory"],
)
def test_an_answer_is_told_what_its_process_was_ended_for(known, how, error, says):
    before = {*descendants(os.getpid())}
    constraint, logits = Constraint(known, regex(f"[ab]{{9}}{how}")), np.zeros(257, np.float32)
    constraint.allow(logits)
    *_, answer = [pid for pid in descendants(os.getpid()) if pid not in before]  # below the other
    os.kill(answer, how)
    constraint.take(ord("a"))
    with pytest.raises(error, match=says):
        constraint.allow(logits)


def test_so_is_one_whose_grammar_s_process_was_killed_too(known):
    before = {*descendants(os.getpid())}
    constraint, logits = Constraint(known, regex("[ab]{9}")), np.zeros(257, np.float32)
    constraint.allow(logits)
    for pid in {*descendants(os.getpid())} - before:
        os.kill(pid, signal.SIGKILL)
    constraint.take(ord("a"))
    with pytest.raises(CapacityError, match="has lost the process"):
        constraint.allow(logits)


def test_there_are_only_so_many_processes(monkeypatch):
    monkeypatch.setattr(grammars, "places", lambda *_: 3)
    known = Vocabulary(BYTES)
    logits = np.zeros(257, np.float32)
    for n in range(3):  # what is kept makes room
        assert known.problem_of(regex(f"kept{n}")) == ""
    one = Constraint(known, regex("one"))
    assert np.isfinite(one.allow(logits)[ord("o")])
    with pytest.raises(CapacityError, match="more than 3 processes"):
        Constraint(known, regex("two"))
    assert np.isfinite(Constraint(known, regex("one")).allow(logits)[ord("o")])
    del one
    gc.collect()
    assert np.isfinite(Constraint(known, regex("two")).allow(logits)[ord("t")])


@pytest.mark.parametrize(
    ("free_gib", "limit", "n"),
    [(64, "max", 24), (16, "max", 16), (1, "max", 4), (64, str(8 << 30), 8), (None, None, 4)],
)
def test_there_are_fewer_where_memory_is_short(tmp_path, free_gib, limit, n):
    group = tmp_path / "sys/fs/cgroup/system.slice/edge.service"
    (tmp_path / "proc/self").mkdir(parents=True)
    group.mkdir(parents=True)
    if free_gib is not None:
        text = f"MemTotal: 9 kB\nMemAvailable:   {free_gib << 20} kB\n"
        (tmp_path / "proc/meminfo").write_text(text)
        (tmp_path / "proc/self/cgroup").write_text("0::/system.slice/edge.service\n")
        (group / "memory.max").write_text("max\n")
        (group.parent / "memory.max").write_text(f"{limit}\n")
    assert places(256 << 20, 4, 24, tmp_path) == n
