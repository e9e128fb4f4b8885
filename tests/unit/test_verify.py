"""The self-check's verdict: what agrees, what is told, and in which order an engine is asked."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from build_engine.verify import (
    ENCODERS,
    EXACT,
    FP8,
    HALF,
    N_GREEDY_TOKENS,
    Comparison,
    Stopwatch,
    Tolerance,
    Verification,
    check_grid,
    check_inputs,
    compare,
    examine,
    marked,
    replay,
    tolerances,
    write_self_check,
    wrong_inputs,
)
from edge.engines.bundle import Bundle, Plans
from edge.errors import BundleError

ALLOWED = Tolerance(0.25, 0.5)
FOUND = Verification(
    engine="cpu",
    gpu=None,
    tensorrt=None,
    recipe="nvfp4",
    checkpoint_sha256="ab" * 32,
    omni_edge="1.2.3",
    outputs=(Comparison("image", 0.125, 0.75, ALLOWED), Comparison("logits", 0.0, 1.0, ALLOWED)),
    controls=(Comparison("image", 1.5, -0.25, ALLOWED),),
    n_greedy_same=63,
    seconds={"load": 0.25, "image": 0.0015},
    memory_bytes={"resident at most": 12_300_000},
    plan_warnings={},
)


@pytest.mark.parametrize(
    ("error", "cosine", "agrees"),
    [
        (0.25, 0.5, True),
        (0.2501, 0.5, False),
        (0.25, 0.4999, False),
        (math.nan, 1.0, False),
        (0.0, math.nan, False),
    ],
)
def test_an_output_agrees_within_both_bounds(error, cosine, agrees):
    assert Comparison("image", error, cosine, ALLOWED).agrees is agrees


def test_what_was_found_is_told_line_by_line():
    assert FOUND.table().splitlines() == [
        "engine cpu, recipe nvfp4",
        "",
        "output      max error    allowed      cosine             ",
        "image         1.2e-01      2e-01    0.750000   ok        ",
        "logits        0.0e+00      2e-01    1.000000   ok        ",
        "image         1.5e+00     >2e-01   -0.250000   control ok",
        "greedy     63 of 64 tokens are the same",
        "",
        "load                             250.00 ms",
        "image                              1.50 ms",
        "resident at most                   12.3 MB",
    ]
    assert FOUND.problem is None
    FOUND.require("bundle")
    assert json.loads(json.dumps(FOUND.as_dict()))["passed"] is True
    on_gpu = dataclasses.replace(FOUND, engine="tensorrt", gpu="Orin", tensorrt="10.13")
    assert on_gpu.table().startswith("engine tensorrt 10.13 on Orin, recipe nvfp4\n")


OFF = (FOUND.outputs[0], Comparison("logits", 0.5, 0.25, ALLOWED))
BLIND = (Comparison("audio", 0.125, 0.75, ALLOWED),)
DIFFERS = "self-check of logits differs by 5.0e-01 of its largest value (cosine 0.250000); 2e-01 "
BLINDLY = "self-check of audio agrees with wrong inputs: it shows nothing"


@pytest.mark.parametrize(
    ("changes", "problem", "line"),
    [
        (
            {"outputs": OFF},
            DIFFERS + "may be",
            "logits        5.0e-01      2e-01    0.250000   WRONG     ",
        ),
        (
            {"controls": BLIND},
            BLINDLY,
            "audio         1.2e-01     >2e-01    0.750000   control WRONG",
        ),
        (
            {"outputs": OFF, "controls": BLIND},
            DIFFERS + "may be",
            "audio         1.2e-01     >2e-01    0.750000   control WRONG",
        ),
    ],
)
@pytest.mark.parametrize(
    ("engine", "what"),
    [("cpu", "machine's numpy and onnxruntime"), ("tensorrt", "plans")],
)
def test_a_self_check_that_fails_refuses_the_bundle(changes, problem, line, engine, what):
    found = dataclasses.replace(FOUND, engine=engine, **changes)
    assert found.problem == problem
    assert line in found.table().splitlines()
    assert {"passed": False, "problem": problem}.items() <= found.as_dict().items()
    with pytest.raises(BundleError) as caught:
        found.require("here")
    said = f"here: {problem}; check the {what}, or build it again with `build-engine bundle`"
    assert str(caught.value).startswith(said)


def test_a_difference_counts_by_the_largest_value_and_by_direction():
    expected = np.float32([[1, 2], [3, 8]])
    same = compare("x", expected, expected, EXACT)
    assert (same.name, same.error, same.cosine, same.agrees) == ("x", 0, pytest.approx(1), True)
    off = compare("x", expected + np.float32([[0, -4], [0, 0]]), expected, EXACT)
    assert off.error == 4 / 8
    # what all rows have in common counts for nothing
    a, b = np.float64([[-1, -7], [1, 3]]), np.float64([[-1, -3], [1, 3]])
    assert off.cosine == pytest.approx((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))
    backwards = compare("x", expected[::-1], expected, EXACT)
    assert backwards.cosine == pytest.approx(-1)
    other = compare("x", expected[:1], expected, EXACT)
    assert (other.error, other.cosine, other.agrees) == (math.inf, 0, False)


def test_wrong_inputs_are_backwards_and_what_is_sensed_is_negated():
    inputs = {"image": np.float32([[1, 2], [3, 4]]), "ids": np.int32([5, 6])}
    wrong = wrong_inputs(inputs)
    assert wrong["image"].tolist() == [[-3, -4], [-1, -2]]
    assert wrong["ids"].tolist() == [6, 5]


@pytest.mark.parametrize(
    ("target", "grid"),
    [(1, (4, 6)), (64, (4, 6)), (65, (6, 8)), (144, (6, 8)), (145, (8, 10)), (1024, (16, 18))],
)
def test_the_pictures_shown_are_not_square_and_within_every_plan(target, grid):
    """Both sides even; at least a quarter of a full tubelet's patches."""
    assert check_grid(SimpleNamespace(video_target_patches=target)) == grid
    assert 4 * math.prod(grid) >= target


def test_the_inputs_are_of_every_kind_and_the_same_each_time(engine):
    spec = engine("base").spec
    inputs, n_features = check_inputs(spec), 3 * spec.vision.patch_size**2
    n_patches = math.prod(check_grid(spec.vision))
    assert {name: (values.shape, values.dtype.name) for name, values in inputs.items()} == {
        "image": ((n_patches, n_features), "float32"),
        "tubelets": ((2, n_patches, spec.vision.tubelet_frames * n_features), "float32"),
        "mel": ((43, spec.audio.n_mels), "float32"),
        "ids": ((24,), "int32"),
    }
    assert 0 <= inputs["ids"].min() <= inputs["ids"].max() < spec.decoder.vocab_size
    again = check_inputs(spec)
    assert all((again[name] == values).all() for name, values in inputs.items())


def test_a_stopwatch_keeps_the_shortest_turn(monkeypatch):
    times = iter([10.0, 12.5, 20.0, 21.0, 30.0, 33.0, 40.0, 41.0])
    monkeypatch.setattr("build_engine.verify.time.monotonic", lambda: next(times))
    watch = Stopwatch()
    assert [watch.time("a", divmod, 7, n) for n in (2, 3, 4)] == [(3, 1), (2, 1), (1, 3)]
    watch.time("b", int)
    assert watch.seconds == {"a": 1.0, "b": 1.0}


PLANS = Plans("10.13", "8.7", 512, {})


@pytest.mark.parametrize(
    ("capability", "scaled", "decoder"),
    [
        ("8.7", True, HALF),
        ("8.9", True, FP8),
        ("8.9", False, HALF),
        ("11.0", True, FP8),
        (None, True, HALF),
    ],
)
def test_a_decoder_in_fp8_may_differ_by_more(capability, scaled, decoder):
    plans = capability and msgspec.structs.replace(PLANS, compute_capability=capability)
    weights = {"layers.0.in_proj": 0, **({"layers.0.in_proj.input_scale": 0} if scaled else {})}
    bundle = SimpleNamespace(manifest=SimpleNamespace(plans=plans), decoder_weights=lambda: weights)
    assert tolerances(bundle) == {
        "image": ENCODERS, "tubelets": ENCODERS, "audio": ENCODERS,
        "logits": decoder, "restored": decoder,
    }  # fmt: skip


def test_only_plans_that_a_gpu_has_run_are_marked(bundle):
    manifest = Bundle(bundle("base")).manifest
    compiled = msgspec.structs.replace(manifest, plans=PLANS)
    on_gpu = dataclasses.replace(FOUND, gpu="Orin (sm 8.7)")
    assert marked(manifest, on_gpu) == manifest
    assert marked(compiled, FOUND) == compiled
    assert marked(compiled, on_gpu).plans == msgspec.structs.replace(
        PLANS, verified="Orin (sm 8.7)"
    )


class Scripted:
    """An engine whose state is the list of what it was given; its likeliest token is the next."""

    def __init__(self, spec):
        self.spec, self.calls = spec, []

    def encode_image(self, patches, grid):
        self.calls.append(("image", patches.shape[0], grid))
        return np.full((3, 2), 1, np.float32)

    def encode_tubelets(self, patches, grid):
        self.calls.append(("tubelets", patches.shape[:2], grid))
        return np.full((2, 3, 2), 2, np.float32)

    def encode_audio(self, mel):
        self.calls.append(("audio", len(mel)))
        return np.full((4, 2), 3, np.float32)

    def embed(self, ids):
        return np.full((len(ids), 2), 4, np.float32)

    def new_state(self):
        return []

    def prefill(self, state, rows):
        state.append(rows[:, 0].tolist())
        return self._logits(50)

    def decode(self, state, token):
        state.append(token)
        return self._logits(token + 1)

    def snapshot(self, state):
        return list(state)

    def restore(self, state, snapshot):
        self.calls.append(("restored", len(state), len(snapshot)))
        state[:] = snapshot

    @staticmethod
    def _logits(best):
        logits = np.zeros(400, np.float32)
        logits[best % 400], logits[399] = 4, -8
        return logits


def test_an_engine_is_asked_in_order(engine):
    spec = engine("base").spec
    scripted, inputs, watch = Scripted(spec), check_inputs(spec), Stopwatch()
    state = []
    scripted.new_state = lambda: state
    outputs = replay(scripted, inputs, watch=watch)
    grid = check_grid(spec.vision)
    n_patches = math.prod(grid)
    assert scripted.calls == [
        ("image", n_patches, grid),
        ("tubelets", (2, n_patches), grid),
        ("audio", 43),
        ("restored", 6, 2),
        ("restored", 6, 2),
    ]
    seen, words, *said = state
    assert seen == [1] * 3 + [2] * 6 + [3] * 4
    assert words == [4] * 24
    assert said == list(range(50, 50 + N_GREEDY_TOKENS)) == outputs["greedy"].tolist()
    first = [int(token) for token in inputs["ids"][:4]]
    assert outputs["logits"].argmax(axis=1).tolist() == [50, *((t + 1) % 400 for t in first)]
    assert (outputs["restored"] == outputs["logits"][1:]).all()
    assert outputs["shortfall"].tolist() == [0] * N_GREEDY_TOKENS
    assert list(watch.seconds) == [
        "image", "two tubelets", "0.43 s of sound", "prefill of 24 tokens", "snapshot", "restore",
        "decode of a token",
    ]  # fmt: skip


def test_another_engines_tokens_are_followed_and_what_they_lack_is_told(engine):
    """Of the largest logit, by magnitude: here 4 of 8."""
    spec = engine("base").spec
    greedy = np.arange(50, 50 + N_GREEDY_TOKENS, dtype=np.int32)
    greedy[10] = 7
    outputs = replay(Scripted(spec), check_inputs(spec), greedy)
    assert outputs["greedy"].tolist() == greedy.tolist()
    assert np.flatnonzero(outputs["shortfall"]).tolist() == [10, 11]
    assert outputs["shortfall"][10] == np.float32(0.5)


def test_a_self_check_of_an_older_builder_is_refused(engine, bundle, tmp_path):
    opened = Bundle(bundle("base"))
    write_self_check(engine("base"), tmp_path)
    with np.load(tmp_path / "selfcheck.npz") as file:
        stored = {name: file[name] for name in file.files}
    assert {name.split(".")[0] for name in stored} == {"input", "output"}
    del stored["output.shortfall"]
    old = SimpleNamespace(path="here", self_check=lambda: stored)
    with pytest.raises(BundleError, match=r"here: has a self-check of an older builder; "):
        examine(old, engine("base"), 0.0)
    assert opened.self_check().keys() - stored.keys() == {"output.shortfall"}


def test_what_is_examined_is_told_with_where_it_is_from(engine, bundle, monkeypatch):
    opened = Bundle(bundle("base"))
    compiled = msgspec.structs.replace(PLANS, warnings={"decode": ("slow",)})
    opened.manifest = msgspec.structs.replace(opened.manifest, plans=compiled)
    monkeypatch.setattr("build_engine.verify.time.monotonic", lambda: 107.0)
    found = examine(opened, engine("base"), 100.0)
    assert found.seconds["load"] == 7
    assert [one.name for one in found.outputs] == [
        "image", "tubelets", "audio", "logits", "restored", "greedy"
    ]  # fmt: skip
    assert [one.name for one in found.controls] == ["image", "tubelets", "audio", "logits"]
    assert {one.tolerance for one in (*found.outputs, *found.controls)} == {EXACT}
    assert found.n_greedy_same > N_GREEDY_TOKENS / 2
    facts = (found.engine, found.gpu, found.tensorrt, found.recipe, found.plan_warnings)
    assert facts == ("cpu", None, None, opened.manifest.recipe, {})  # no plan was run
    assert found.checkpoint_sha256 == opened.manifest.checkpoint_sha256
    (resident,) = found.memory_bytes.items()
    assert resident[0] == "resident at most"
    assert 2**26 < resident[1] < 2**36
