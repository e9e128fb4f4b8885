"""The laws that every engine keeps (engine.py), as properties over random inputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_tiny_checkpoint import PRESETS

from edge.errors import EngineError

# Measured: splits differ by at most 3e-6 of the largest logit (float32 sums in another order).
RELATIVE_TOLERANCE = 2e-5

law = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
preset = st.sampled_from(sorted(PRESETS))
seed = st.integers(0, 2**32 - 1)


def rows_of(engine, seed, n):
    """Random embeddings [n, H]: tokens with a stretch of media among them."""
    rng = np.random.default_rng(seed)
    rows = engine.embed(rng.integers(0, engine.spec.decoder.vocab_size, n, np.int32)).copy()
    media = rng.random(n) < 0.3
    rows[media] = 0.5 * rng.standard_normal((media.sum(), rows.shape[1]), np.float32)
    return rows


def assert_close(got, expected):
    assert np.isfinite(got).all()
    assert np.abs(got - expected).max() <= RELATIVE_TOLERANCE * np.abs(expected).max()


def assert_identical(engine, one, other):
    """The same state, bit by bit."""
    assert engine.n_tokens(one) == engine.n_tokens(other)
    n = one.n_tokens
    for layer in one.kv:
        np.testing.assert_array_equal(one.kv[layer].keys[:n], other.kv[layer].keys[:n])
        np.testing.assert_array_equal(one.kv[layer].values[:n], other.kv[layer].values[:n])
    for layer in one.ssm:
        np.testing.assert_array_equal(one.ssm[layer], other.ssm[layer])
        np.testing.assert_array_equal(one.conv[layer], other.conv[layer])


@law
@given(preset=preset, seed=seed, cuts=st.lists(st.integers(1, 299), max_size=6))
def test_a_prefill_in_any_split_equals_the_prefill_at_once(engine, preset, seed, cuts):
    executor = engine(preset)
    rows = rows_of(executor, seed, 300)
    whole, split = executor.new_state(), executor.new_state()
    expected = executor.prefill(whole, rows)
    for piece in np.split(rows, sorted(set(cuts))):
        got = executor.prefill(split, piece)
    assert_close(got, expected)
    assert_close(executor.decode(split, 5), executor.decode(whole, 5))


@law
@given(preset=preset, seed=seed, n=st.integers(1, 40), token=st.integers(0, 511))
def test_decode_equals_the_prefill_of_one(engine, preset, seed, n, token):
    executor = engine(preset)
    rows = rows_of(executor, seed, n)
    one, other = executor.new_state(), executor.new_state()
    executor.prefill(one, rows)
    executor.prefill(other, rows)
    decoded = executor.decode(one, token)
    prefilled = executor.prefill(other, executor.embed(np.array([token], np.int32)))
    np.testing.assert_array_equal(decoded, prefilled)
    assert_identical(executor, one, other)


@law
@given(preset=preset, seed=seed, n=st.integers(1, 300), n_after=st.integers(1, 300))
def test_restore_is_bit_identical(engine, preset, seed, n, n_after):
    executor = engine(preset)
    rows = rows_of(executor, seed, n + n_after)
    state, untouched = executor.new_state(), executor.new_state()
    executor.prefill(state, rows[:n])
    executor.prefill(untouched, rows[:n])
    before = executor.snapshot(state)
    executor.prefill(state, rows[n:])
    executor.decode(state, 7)
    executor.restore(state, before)
    assert_identical(executor, state, untouched)
    np.testing.assert_array_equal(executor.decode(state, 3), executor.decode(untouched, 3))


@law
@given(preset=preset, seed=seed, n=st.integers(1, 40))
def test_a_snapshot_may_be_restored_again(engine, preset, seed, n):
    """What advances a restored state leaves the snapshot as it is."""
    executor, state = engine(preset), engine(preset).new_state()
    executor.prefill(state, rows_of(executor, seed, n))
    before, answers = executor.snapshot(state), []
    for _ in range(3):
        answers.append([executor.decode(state, token) for token in (3, 1)])
        executor.restore(state, before)
    np.testing.assert_array_equal(answers[1], answers[0])
    np.testing.assert_array_equal(answers[2], answers[0])


@law
@given(preset=preset, seed=seed, turns=st.lists(st.booleans(), min_size=2, max_size=12))
def test_two_states_never_touch_each_other(engine, preset, seed, turns):
    executor = engine(preset)
    rows = rows_of(executor, seed, 5 * len(turns))
    together = {True: executor.new_state(), False: executor.new_state()}
    alone = {True: executor.new_state(), False: executor.new_state()}
    pieces = list(zip(turns, np.split(rows, len(turns)), strict=True))
    for which, piece in pieces:
        executor.prefill(together[which], piece)
    for which in (True, False):
        for turn, piece in pieces:
            if turn is which:
                executor.prefill(alone[which], piece)
        assert_identical(executor, together[which], alone[which])


@pytest.mark.parametrize("n", [255, 256, 257, 512, 600])
def test_growth_of_the_cache_keeps_every_row(engine, n):
    """The K/V buffers double at 256 and 512 rows."""
    executor = engine("base")
    rows = rows_of(executor, n, n)
    grown, at_once = executor.new_state(), executor.new_state()
    for row in rows:
        executor.prefill(grown, row[None])
    executor.prefill(at_once, rows)
    for layer, cache in grown.kv.items():
        assert_close(cache.keys[:n], at_once.kv[layer].keys[:n])
        assert_close(cache.values[:n], at_once.kv[layer].values[:n])


def test_a_snapshot_is_of_its_own_state_alone(engine):
    executor = engine("base")
    rows = rows_of(executor, 0, 20)
    one, other = executor.new_state(), executor.new_state()
    executor.prefill(one, rows)
    executor.prefill(other, rows[:5])
    before = executor.snapshot(one)
    with pytest.raises(EngineError, match="snapshot: is of another state"):
        executor.restore(other, before)
    executor.restore(one, before)
    assert executor.n_tokens(other) == 5
