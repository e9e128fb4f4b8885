"""Pruning as tubelets arrive: what is kept, what is owed, and the budget of any second."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.clock import NS_PER_MS, NS_PER_S
from edge.features.evs import CUT_SHARE, REFRESH_NS, CausalPruner, n_kept, retention_mask

ROWS, COLUMNS, HIDDEN = 4, 6, 8
PLACES = ROWS * COLUMNS
PLENTY = 1 << 20
SHARE = (0, 1 / PLACES, CUT_SHARE / 2, 1)
"""How much of a picture changes: nothing, a place, some, all."""


def tubelet(rng):
    return rng.normal(size=(ROWS, COLUMNS, HIDDEN)).astype(np.float32)


def changed(rng, before, share):
    """`before` with that share of its places turned to their opposite, and a camera's noise."""
    after = (before + rng.normal(0, 0.01, before.shape)).astype(np.float32)
    places = rng.permutation(PLACES)[: round(share * PLACES)]
    after.reshape(PLACES, HIDDEN)[places] = -before.reshape(PLACES, HIDDEN)[places]
    mask = np.zeros(PLACES, bool)
    mask[places] = True
    return after, mask.reshape(ROWS, COLUMNS)


@given(st.integers(1, 20), st.integers(0, 1000))
def test_a_clip_keeps_what_the_reference_keeps_of_it(n_tubelets, seed):
    rng = np.random.default_rng(seed)
    clip = [tubelet(rng)]
    for _ in range(n_tubelets - 1):
        n_changed = rng.integers(1, PLACES * CUT_SHARE)
        after = clip[-1].copy()
        places = rng.permutation(PLACES)[:n_changed]
        after.reshape(PLACES, HIDDEN)[places] = rng.normal(size=(n_changed, HIDDEN))
        clip.append(after)
    pruner = CausalPruner(PLENTY, 1)
    mask = np.array([pruner.keep(t, i * NS_PER_S) for i, t in enumerate(clip)])
    rate = max(0.0, 1 - (mask.sum() + 0.5) / mask.size)
    assert n_kept(n_tubelets, PLACES, rate) == mask.sum()
    assert (retention_mask(np.array(clip), rate) == mask).all()


@pytest.mark.parametrize("whole", [False, True])
def test_of_a_still_picture_nothing_is_kept_but_the_first(whole):
    rng = np.random.default_rng(0)
    first, pruner = tubelet(rng), CausalPruner(PLENTY, 1, whole_pictures=whole)
    assert pruner.keep(first, 0).all()
    for t in range(1, PLACES + 1):
        assert not pruner.keep(changed(rng, first, 0)[0], t * NS_PER_S).any()


def test_whole_pictures_are_kept_as_far_as_the_budget_goes():
    rng = np.random.default_rng(0)
    first = tubelet(rng)
    second, mask = changed(rng, first, 0.2)
    for tokens_per_s, n in ((PLENTY, PLACES), (11, 10)):
        pruner = CausalPruner(tokens_per_s, 1, whole_pictures=True)
        pruner.keep(first, 0)
        kept = pruner.keep(second, NS_PER_S)
        assert kept.sum() == n
        assert kept[mask].all()
        assert not pruner.keep(second, 2 * NS_PER_S).any()  # the unchanged is not owed


def test_what_changed_is_kept_and_nothing_else():
    rng = np.random.default_rng(0)
    before, pruner = tubelet(rng), CausalPruner(PLENTY, 1)
    pruner.keep(before, 0)
    for t in range(1, 20):
        before, mask = changed(rng, before, 0.2)
        assert (pruner.keep(before, t * NS_PER_S) == mask).all()


def test_the_first_tubelet_after_a_cut_is_whole_and_a_moving_camera_is_one_cut():
    rng = np.random.default_rng(0)
    before, pruner = tubelet(rng), CausalPruner(8, 1)
    pruner.keep(before, 0)
    counts = []
    for t, share in enumerate((0, 0, 0.6, 0, 1, 1, 1, 0), 1):
        before, _ = changed(rng, before, share)
        counts.append(int(pruner.keep(before, t * NS_PER_S).sum()))
    assert counts == [0, 0, PLACES, 0, PLACES, 7, 7, 7]  # the last pays what is owed


def test_what_the_budget_leaves_out_is_kept_later():
    rng = np.random.default_rng(0)
    first, pruner = tubelet(rng), CausalPruner(4, 1)
    pruner.keep(first, 0)
    second, mask = changed(rng, first, 0.4)
    kept = [pruner.keep(second, t * NS_PER_S) for t in range(1, 5)]
    assert [int(k.sum()) for k in kept] == [3, 3, 3, 1]
    assert (np.sum(kept[:3], axis=0) + kept[3] >= mask).all()
    assert not (kept[0] & kept[1]).any()


def test_what_was_not_kept_for_long_is_kept_again():
    """A change too slow to be seen from one tubelet to the next."""
    angle, pruner = 0.0, CausalPruner(PLENTY, 1)
    counts = []
    for t in range(2 * REFRESH_NS // NS_PER_S + 1):
        picture = np.zeros((16, 16, 2), np.float32)
        picture[:] = (np.cos(angle), np.sin(angle))
        angle += 0.02
        counts.append(int(pruner.keep(picture, t * NS_PER_S).sum()))
    n = REFRESH_NS // NS_PER_S
    assert counts[0] == 256
    assert set(counts[1:n]) == {0}
    assert counts[n] == 256
    assert set(counts[n + 1 : -1]) == {0}
    assert counts[-1] == 256


def test_another_size_and_a_forgotten_context_start_again():
    rng = np.random.default_rng(0)
    picture, pruner = tubelet(rng), CausalPruner(PLENTY, 1)
    pruner.keep(picture, 0)
    assert pruner.keep(picture.transpose(1, 0, 2), NS_PER_S).all()
    assert pruner.keep(picture, 2 * NS_PER_S).all()
    assert not pruner.keep(picture, 3 * NS_PER_S).any()
    pruner.start_again()
    assert pruner.keep(picture, 4 * NS_PER_S).all()


def test_a_cut_right_after_a_new_beginning_is_a_cut():
    """What moved before it says nothing of what comes."""
    rng = np.random.default_rng(0)
    before, pruner = tubelet(rng), CausalPruner(8, 1)
    pruner.keep(before, 0)
    before, _ = changed(rng, before, 1)
    assert pruner.keep(before, NS_PER_S).all()
    pruner.start_again()
    assert pruner.keep(before, 2 * NS_PER_S).all()
    before, _ = changed(rng, before, 1)
    assert pruner.keep(before, 3 * NS_PER_S).all()


@pytest.mark.parametrize(("wait_ns", "n"), [(NS_PER_S - 1, 7), (NS_PER_S, PLACES)])
def test_of_two_cuts_within_a_second_one_is_whole(wait_ns, n):
    rng = np.random.default_rng(0)
    before, pruner = tubelet(rng), CausalPruner(PLACES + 8, 1)
    pruner.keep(before, 0)
    before, _ = changed(rng, before, 1)
    assert pruner.keep(before, wait_ns).sum() == n


@pytest.mark.parametrize(("share", "n"), [(1.0, 7), (0.5, 3), (0.25, 1), (0.0, 1)])
def test_a_share_of_the_budget_is_spent_and_a_token_at_least(share, n):
    rng = np.random.default_rng(0)
    first, pruner = tubelet(rng), CausalPruner(8, 1)
    pruner.keep(first, 0)
    second, _ = changed(rng, first, 0.4)
    assert pruner.keep(second, NS_PER_S, share).sum() == n


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 8).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.integers(n + 1, 3 * PLACES),
            st.lists(st.tuples(st.integers(0, 1500), st.sampled_from(SHARE)), max_size=40),
        )
    ),
    st.booleans(),
    st.integers(0, 1000),
)
def test_no_second_exceeds_the_budget_by_more_than_one_tubelet(case, whole, seed):
    max_tubelets_per_s, tokens_per_s, steps = case
    rng = np.random.default_rng(seed)
    picture, pruner = (
        tubelet(rng),
        CausalPruner(tokens_per_s, max_tubelets_per_s, whole_pictures=whole),
    )
    times, counts = [0], [int(pruner.keep(picture, 0).sum())]
    for gap_ms, share in steps:
        now = times[-1] + gap_ms * NS_PER_MS
        if len(times) >= max_tubelets_per_s:  # no source sends more
            now = max(now, times[-max_tubelets_per_s] + NS_PER_S)
        picture, mask = changed(rng, picture, share)
        times.append(now)
        counts.append(int(pruner.keep(picture, now).sum()))
        assert counts[-1] or not mask.any()
    for start in times:
        within = [n for time, n in zip(times, counts, strict=True) if 0 <= time - start < NS_PER_S]
        assert sum(within) <= tokens_per_s + PLACES
        if PLACES not in within:
            assert sum(within) <= tokens_per_s
