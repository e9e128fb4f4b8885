"""The laws of every engine (engine.py), kept by the tensorrt engine on a fake GPU.

The fake computes with the reference operations on what the engine bound, copied and appended, so a
wrong address or order breaks a law.
"""

from __future__ import annotations

import numpy as np
import pytest
from fake_cuda import FakeDriver
from fake_gpu import load, redescribed
from fake_tensorrt import use_real_graphs, write_plans
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_tiny_checkpoint import PRESETS
from unit.test_laws import RELATIVE_TOLERANCE, assert_close, rows_of

from build_engine.bundle import build_bundle
from build_engine.checkpoint import Checkpoint
from build_engine.quantize import Job, quantize
from build_engine.recipe import load_recipe
from edge.engines.bundle import Bundle
from edge.engines.cpu import CpuEngine
from edge.engines.engine import MAX_PREFILL_TOKENS

HALF_TOLERANCE = 5e-2
"""Of the largest logit, rows, K/V and conv in float16. Measured over seeds: 3e-4 to 1e-3, and 2e-2
where a routed expert flips at a near tie."""

law = settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
preset = st.sampled_from(sorted(PRESETS))
seed = st.integers(0, 2**32 - 1)


def assert_identical(machine, one, other):
    """The same state, bit by bit, but for its place."""
    assert one.n_tokens == other.n_tokens
    for (name, values), expected in zip(
        machine.contents(one).items(), machine.contents(other).values(), strict=True
    ):
        np.testing.assert_array_equal(values, expected, err_msg=name)


@law
@given(preset=preset, seed=seed, n=st.integers(1, 360))
def test_the_logits_are_those_of_the_cpu_engine(machine, engine, preset, seed, n):
    executor, reference = machine(preset).engine, engine(preset)
    rows = rows_of(executor, seed, n)
    state, expected = executor.new_state(), reference.new_state()
    assert_close(executor.prefill(state, rows), reference.prefill(expected, rows))
    for token in (5, 9):
        assert_close(executor.decode(state, token), reference.decode(expected, token))


@law
@given(preset=preset, seed=seed, cuts=st.lists(st.integers(1, 359), max_size=6))
def test_a_prefill_in_any_split_equals_the_prefill_at_once(machine, preset, seed, cuts):
    executor = machine(preset).engine
    rows = rows_of(executor, seed, 360)
    whole, split = executor.new_state(), executor.new_state()
    expected = executor.prefill(whole, rows)
    for piece in np.split(rows, sorted(set(cuts))):
        got = executor.prefill(split, piece)
    assert_close(got, expected)
    assert_close(executor.decode(split, 5), executor.decode(whole, 5))


@law
@given(preset=preset, seed=seed, n=st.integers(1, 200))
def test_a_decode_equals_the_prefill_of_its_embedding(machine, preset, seed, n):
    board = machine(preset)
    executor = board.engine
    rows = rows_of(executor, seed, n)
    decoded, prefilled = executor.new_state(), executor.new_state()
    executor.prefill(decoded, rows)
    executor.prefill(prefilled, rows)
    logits = executor.decode(decoded, 7)
    expected = executor.prefill(prefilled, executor.embed(np.array([7], np.int32)))
    np.testing.assert_array_equal(logits, expected)
    assert_identical(board, decoded, prefilled)


@law
@given(preset=preset, seed=seed, n=st.integers(1, 260), n_after=st.integers(1, 70))
def test_restore_brings_a_state_back_bit_by_bit(machine, preset, seed, n, n_after):
    board = machine(preset)
    executor = board.engine
    rows = rows_of(executor, seed, n + n_after)
    state, untouched = executor.new_state(), executor.new_state()
    executor.prefill(state, rows[:n])
    executor.prefill(untouched, rows[:n])
    before = executor.snapshot(state)
    executor.prefill(state, rows[n:])
    executor.decode(state, 7)
    executor.restore(state, before)
    assert_identical(board, state, untouched)
    np.testing.assert_array_equal(executor.decode(state, 3), executor.decode(untouched, 3))


@law
@given(preset=preset, seed=seed, turns=st.lists(st.booleans(), min_size=2, max_size=12))
def test_two_states_never_touch_each_other(machine, preset, seed, turns):
    board = machine(preset)
    executor = board.engine
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
        assert_identical(board, together[which], alone[which])


@pytest.mark.parametrize("n", [63, 64, 65, 128, 129, 255, 256, 257, 513, 639])
def test_every_bucket_of_the_cache_holds_every_row(machine, n):
    """Buckets end at 64, 128, 256, 512 and 640 rows; decode crosses each end."""
    executor = machine("base").engine
    rows = rows_of(executor, n, n)
    state, expected = executor.new_state(), executor.new_state()
    executor.prefill(state, rows[: n - 3])
    for row in rows[n - 3 :]:
        got = executor.prefill(state, row[None])
    assert_close(got, executor.prefill(expected, rows))
    assert_close(executor.decode(state, 3), executor.decode(expected, 3))


def test_a_place_is_clean_when_it_is_used_again(machine):
    executor = machine("base").engine
    rows = rows_of(executor, 1, 40)
    expected = executor.prefill(executor.new_state(), rows)
    for _ in range(12):
        state = executor.new_state()
        np.testing.assert_array_equal(executor.prefill(state, rows), expected)
        executor.decode(state, 1)  # an odd number of steps: the other half is the newer one
        del state


@pytest.mark.parametrize("name", ["base", "wide"])
def test_float16_activations_stay_near(machine, engine, name):
    """Near, and not the same: the plan's type is really used."""
    executor, reference = machine(name, "HALF").engine, engine(name)
    rows = rows_of(executor, 3, 120)
    state, expected = executor.new_state(), reference.new_state()
    got, wanted = executor.prefill(state, rows), reference.prefill(expected, rows)
    assert np.abs(got - wanted).max() <= HALF_TOLERANCE * np.abs(wanted).max()
    assert not np.abs(got - wanted).max() <= RELATIVE_TOLERANCE * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["grouped", "wide"])
def test_the_builders_graph_on_the_engine_gives_the_cpu_engines_logits(machine, engine, name):
    """Graph, engine and bundle agree on every name, shape and address."""
    board, reference = machine(name, "GRAPH"), engine(name)
    executor = board.engine
    rows = rows_of(executor, 5, 300)
    state, expected = executor.new_state(), reference.new_state()
    for piece in np.split(rows, [7, 8, 270]):
        assert_close(executor.prefill(state, piece), reference.prefill(expected, piece))
    before = executor.snapshot(state)
    first = [executor.decode(state, token) for token in (5, 9)]
    executor.restore(state, before)
    for token, logits in zip((5, 9), first, strict=True):
        np.testing.assert_array_equal(executor.decode(state, token), logits)
        assert_close(logits, reference.decode(expected, token))


def test_packed_weights_arrive_as_the_graph_takes_them(checkpoint, tmp_path):
    job = Job(Checkpoint(checkpoint("base")), load_recipe("w4a16"), (), tmp_path / "quantized")
    quantize(job, lambda *_: None)
    folder = tmp_path / "bundle"
    build_bundle(tmp_path / "quantized", folder, "cpu", lambda *_: None)
    write_plans(folder, Bundle(folder).manifest.spec, "FLOAT", 640, MAX_PREFILL_TOKENS)
    use_real_graphs(folder)
    board = load(redescribed(folder), FakeDriver(), max_states=1)
    reference = CpuEngine(Bundle(folder), exact=True)
    rows = rows_of(reference, 5, 60)
    state, expected = board.engine.new_state(), reference.new_state()
    assert_close(board.engine.prefill(state, rows), reference.prefill(expected, rows))
    assert_close(board.engine.decode(state, 5), reference.decode(expected, 5))
    board.engine.close()
    assert board.driver.leaks() == {}


@law
@given(seed=seed)
def test_the_encoders_give_what_the_cpu_engines_give(machine, engine, seed):
    executor, reference = machine("base").engine, engine("base")
    rng = np.random.default_rng(seed)
    vision, mels = reference.spec.vision, reference.spec.audio.n_mels
    features = 3 * vision.patch_size**2
    image = rng.standard_normal((24, features), np.float32)
    np.testing.assert_allclose(
        executor.encode_image(image, (4, 6)), reference.encode_image(image, (4, 6)), atol=1e-5
    )
    tubelets = rng.standard_normal((5, 24, vision.tubelet_frames * features), np.float32)
    np.testing.assert_allclose(
        executor.encode_tubelets(tubelets, (6, 4)),
        reference.encode_tubelets(tubelets, (6, 4)),
        atol=1e-5,
    )
    mel = rng.standard_normal((rng.integers(1, 90), mels), np.float32)
    np.testing.assert_allclose(executor.encode_audio(mel), reference.encode_audio(mel), atol=1e-5)
