"""The live context: a complete ledger, forks without a trace, bounded memory."""

from __future__ import annotations

import numpy as np
import pytest

from edge.errors import CapacityError, ConfigurationError
from edge.session.context import LiveContext
from edge.session.slot import Perceived
from edge.types import Evidence

ANCHOR = np.arange(3, 9, dtype=np.int32)
SEPARATOR = np.array([198], np.int32)
SPLIT_TOLERANCE = 2e-5
"""As the laws' of tests/unit/test_laws.py: sums in another order."""
now = LiveContext._rebase_now


def context_of(engine, max_tokens=200, keep_tokens=80):
    return LiveContext(engine, ANCHOR, SEPARATOR, max_tokens=max_tokens, keep_tokens=keep_tokens)


def perceived(engine, n, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, engine.spec.decoder.hidden_size), np.float32)
    return Perceived("video", rows, Evidence("camera", seed, seed + 1, (seed,)))


def decoded(context):
    with context.fork() as fork:
        return context.engine.decode(fork.state, 5)


def test_every_token_is_in_the_ledger(engine):
    context = context_of(engine("base"))
    for seed, n in enumerate((7, 1, 30)):
        context.append(perceived(context.engine, n, seed))
        assert sum(segment.n_tokens for segment in context.ledger) == context.n_tokens
    # The first segment follows the anchor directly; a separator stands before each other one.
    assert [segment.n_tokens for segment in context.ledger] == [6, 7, 2, 31]
    assert [evidence.frame_ids for evidence in context.evidence()] == [(0,), (1,), (2,)]
    assert context.newest_capture_ns() == 3


def test_a_fork_leaves_the_live_state_as_it_was(engine):
    context = context_of(engine("base"))
    context.append(perceived(context.engine, 20))
    before, n_before = decoded(context), context.n_tokens
    with context.fork() as fork:
        context.engine.prefill(fork.state, perceived(context.engine, 300, 9).embeddings)
        with pytest.raises(RuntimeError, match="fork"):
            context.append(perceived(context.engine, 5))
    assert context.n_tokens == n_before
    np.testing.assert_array_equal(decoded(context), before)


def test_a_fork_that_fails_leaves_the_live_state_as_it_was(engine):
    context = context_of(engine("base"))
    context.append(perceived(context.engine, 20))
    before = decoded(context)

    def fail():
        with context.fork() as fork:
            context.engine.decode(fork.state, 3)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    np.testing.assert_array_equal(decoded(context), before)


def fresh_of(context, segments):
    """Another context, of the segments that are in this one: the newest, without a gap."""
    fresh = context_of(context.engine, max_tokens=4 * context.max_tokens)
    inside = [segment.evidence for segment in context.ledger[1:]]
    assert inside == [segment.evidence for segment in segments[-len(inside) :]]
    for segment in segments:
        if segment.evidence in inside:
            fresh.append(segment)
    assert fresh.n_rebases == 0
    assert fresh.n_tokens == context.n_tokens
    return fresh


def assert_same(fresh, context):
    wanted = decoded(fresh)
    np.testing.assert_allclose(decoded(context), wanted, atol=SPLIT_TOLERANCE * abs(wanted).max())


@pytest.mark.parametrize("idle", [0, 1, 5], ids=["never", "sometimes", "always"])
def test_a_rebased_state_equals_a_fresh_prefill_of_the_same_segments(engine, idle):
    """However much idle time there is between the segments."""
    context, segments = context_of(engine("wide")), []
    for seed in range(14):
        segments.append(perceived(context.engine, 25, seed))
        context.append(segments[-1])
        assert context.n_tokens <= context.max_tokens
        assert sum(segment.n_tokens for segment in context.ledger) == context.n_tokens
        for _ in range(idle):
            context.rebase()
    assert context.n_rebases > 0
    assert_same(fresh_of(context, segments), context)


def test_a_rebase_is_ready_in_time_when_what_it_owes_is_done(engine, monkeypatch):
    """Then no append has to wait for more than the rest of it: chunks of 16 tokens show it."""
    monkeypatch.setattr("edge.session.slot.MAX_PREFILL_TOKENS", 16)
    context = context_of(engine("single"), max_tokens=400, keep_tokens=100)
    sizes = np.random.default_rng(3).integers(1, 40, 200)
    forced = []
    monkeypatch.setattr(
        LiveContext, "_rebase_now", lambda self: forced.append(self._next.n_waiting) or now(self)
    )
    n_owed = []
    for seed, n in enumerate(sizes):
        n_owed.append(0)
        while context.owes_rebase:
            context.rebase()
            n_owed[-1] += 1
        context.append(perceived(context.engine, int(n), seed))
        assert context.n_tokens <= context.max_tokens
        inside = [segment.evidence.start_ns for segment in context.ledger[1:]]
        assert inside == list(range(seed + 1 - len(inside), seed + 1))  # the newest, no gap
    assert context.n_rebases > 5
    assert max(n_owed) <= 2 + 2 * 40 // 16  # no burst: in proportion to what was appended
    assert all(n <= 2 * 40 for n in forced)


def test_a_turn_between_two_chunks_finds_the_live_state(engine):
    context = context_of(engine("wide"))
    segments = [perceived(context.engine, 25, seed) for seed in range(7)]
    context.append(*segments)
    before, n_before = decoded(context), context.n_tokens
    assert context._next is not None
    with context.fork(), pytest.raises(RuntimeError, match="fork"):
        context.rebase()
    np.testing.assert_array_equal(decoded(context), before)
    assert (context.n_tokens, context.n_rebases) == (n_before, 0)
    while context.rebase():
        pass
    assert context.n_rebases == 1
    assert_same(fresh_of(context, segments), context)


def test_memory_is_bounded_for_ever(engine):
    context = context_of(engine("single"))
    for seed in range(400):
        context.append(perceived(context.engine, 1 + seed % 40, seed))
        assert context.n_tokens <= 200
        assert len(context.ledger) <= 200
    # 200 tokens fit into the first block of rows: the cache never grew.
    assert {len(cache.keys) for cache in context.state.kv.values()} == {256}


def test_a_segment_larger_than_what_is_kept_is_refused(engine):
    context = context_of(engine("base"))
    before = decoded(context)
    with pytest.raises(CapacityError, match="video segment: has 81 tokens"):
        context.append(perceived(context.engine, 80))
    np.testing.assert_array_equal(decoded(context), before)
    context.append(perceived(context.engine, 79))


def test_an_anchor_that_leaves_no_room_is_refused(engine):
    with pytest.raises(ConfigurationError, match=r"context\.keep_tokens: is 80"):
        context_of(engine("base"), max_tokens=85)


def test_a_part_of_the_past_is_recalled_and_the_live_state_stays(engine):
    context = context_of(engine("wide"), max_tokens=400, keep_tokens=200)
    with pytest.raises(CapacityError, match="nothing has been perceived yet"):
        context.recall(2, 3)
    segments = [perceived(context.engine, 20, seed) for seed in range(6)]
    context.append(*segments)
    before = decoded(context)
    recalled = context.recall(2, 3)  # a segment reaches from its seed to the next number
    assert recalled.n_waiting == sum(segment.n_tokens for segment in recalled.ledger)
    while recalled.advance():
        pass
    fresh = context_of(context.engine)
    fresh.append(*segments[1:4])
    assert [s.evidence for s in recalled.ledger] == [s.evidence for s in fresh.ledger]
    assert_same(fresh, recalled)
    np.testing.assert_array_equal(decoded(context), before)
    with pytest.raises(CapacityError, match="nothing is kept of that time"):
        context.recall(50, 60)


def still_of(engine, end_ns):
    rows = np.zeros((0, engine.spec.decoder.hidden_size), np.float32)
    return Perceived("video", rows, Evidence("camera", end_ns - 1, end_ns, (end_ns,)))


def test_what_is_still_so_prolongs_the_newest_segment_of_its_own_kind(engine):
    context = context_of(engine("base"))
    for modality, source, end_ns in (
        ("video", "camera", 1),
        ("video", "camera", 2),
        ("audio", "camera", 3),
        ("video", "other", 4),
    ):
        rows = perceived(context.engine, 4).embeddings
        context.append(Perceived(modality, rows, Evidence(source, end_ns - 1, end_ns)))
    before, n_before = decoded(context), context.n_tokens
    context.append(still_of(context.engine, 9))
    assert context.n_tokens == n_before
    np.testing.assert_array_equal(decoded(context), before)
    assert [evidence.end_ns for evidence in context.evidence()] == [1, 9, 3, 4]
    assert context.newest_capture_ns("camera") == 9
    assert [s.evidence.end_ns for s in context.recall(8, 9).ledger[1:]] == [9]


def test_what_is_still_so_is_known_also_after_a_rebase(engine):
    context = context_of(engine("base"))
    n = 0
    while context._next is None:
        n += 1
        context.append(perceived(context.engine, 10, n))
    context.append(still_of(context.engine, 99))
    while context.rebase():
        pass
    assert context.n_rebases == 1
    assert [context.evidence()[-1].frame_ids, context.newest_capture_ns()] == [(n,), 99]


def test_before_anything_was_seen_nothing_can_still_be_so(engine):
    context = context_of(engine("base"))
    context.append(still_of(context.engine, 9))
    assert len(context.ledger) == 1
    assert context.newest_capture_ns() is None


def test_exactly_so_many_tokens_are_kept(engine):
    context = context_of(engine("base"), keep_tokens=80)
    for seed in range(4):
        context.append(perceived(context.engine, 19, seed))  # and a separator
    assert len(context.kept("video")) == 4
    context.append(perceived(context.engine, 1, 4))
    assert len(context.kept("video")) == 4


@pytest.mark.parametrize("is_rebuilding", [False, True])
def test_what_was_tentative_and_stays_survives_a_rebase(engine, is_rebuilding):
    context = context_of(engine("base"))
    context.append(perceived(context.engine, 20, 0))
    if is_rebuilding:
        context._begin_rebase()
    said = perceived(context.engine, 10, 1)
    context.append_tentatively(said)
    context.settle()
    assert context.kept("video")[-1] is said
    now(context)
    assert context.n_rebases == 1
    assert [segment.evidence for segment in context.ledger[1:]][-1] == said.evidence
    assert_same(fresh_of(context, [perceived(context.engine, 20, 0), said]), context)


def test_nothing_is_changed_under_a_fork_or_behind_what_is_tentative(engine):
    """Each is a defect of the caller, said as such, and leaves all as it is."""
    context = context_of(engine("base"))
    context.append(perceived(engine("base"), 5))
    later = perceived(engine("base"), 5, 1)
    changes = {
        "append": lambda: context.append(later),
        "append tentatively": lambda: context.append_tentatively(later),
        "still": lambda: context.append(still_of(engine("base"), 9)),
        "rebase": context.rebase,
    }
    with context.fork():
        for name, change in {**changes, "open": context.open_fork}.items():
            said = {"open": "a fork of a fork", "rebase": "^rebase while a fork is open"}
            with pytest.raises(RuntimeError, match=said.get(name, "^append while a fork is open")):
                change()
    before = [*context.ledger]
    context.append_tentatively(later)
    assert context.is_tentative
    for name, change in changes.items():
        what = "rebase" if name == "rebase" else "append"
        with pytest.raises(RuntimeError, match=f"^{what} behind a tentative segment"):
            change()
    context.open_fork()
    with pytest.raises(RuntimeError, match="reopen while a fork is open"):
        context.reopen()
    context.close_fork()
    context.reopen()
    assert (context.ledger, context.is_tentative) == (before, False)
