"""What `build-engine plan` says that the engine takes is what it takes, to the byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_cuda import FakeDriver
from fake_gpu import describe_plans, load
from fake_tensorrt import SCRATCH_BYTES, bind_as, take_profiles, write_plans
from graphs.random_decoder import divisible_checkpoint, recipe_weights

from build_engine import cli
from build_engine.boards import BOARDS
from build_engine.bundle import build_bundle
from build_engine.checkpoint import Checkpoint
from build_engine.decoder_layout import bundle_layout, recipe_layout
from build_engine.footprint import engine_bytes, footprint, weight_bytes
from build_engine.graphs.decoder import DEVICE, DEVICE_FP8, decoder_model
from build_engine.plan import make_plan
from build_engine.plans import PHASES
from build_engine.profiles import longest_past, profiles_of
from build_engine.recipe import load_recipe
from edge.engines.bundle import DECODER_WEIGHTS, Bundle, Plans
from edge.engines.engine import MAX_PREFILL_TOKENS
from edge.engines.safetensors import write_safetensors

MAPPED = ("embeddings",)
IN_THE_PLANS = ("vision encoder", "vision projector", "audio encoder", "audio projector")
RECIPES = [("w4a16", DEVICE), ("int4", DEVICE), ("nvfp4", DEVICE_FP8)]


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    """A checkpoint whose sizes suit every format, and its bundle."""
    folder = tmp_path_factory.mktemp("sized")
    checkpoint = divisible_checkpoint(folder / "checkpoint")
    build_bundle(folder / "checkpoint", folder / "bundle", "cpu", lambda *_: None)
    return checkpoint, folder / "bundle"


def compiled_bundle(sized, tmp_path, recipe, precision, context):
    """A bundle of a recipe, its plans as the builder makes them for a device."""
    checkpoint, plain = sized
    spec, folder = checkpoint.spec, tmp_path / "bundle"
    shutil.copytree(plain, folder)
    layout = recipe_layout(spec.decoder, load_recipe(recipe))
    weights = recipe_weights(checkpoint, load_recipe(recipe))
    assert set(weights) == set(layout)
    ordered = {name: np.asarray(weights[name]).astype(layout[name][0]) for name in layout}
    write_safetensors(folder / DECODER_WEIGHTS, ordered)
    assert bundle_layout(folder) == layout
    rows = longest_past(context)
    write_plans(folder, spec, "HALF", rows, MAX_PREFILL_TOKENS)
    take_profiles(folder, profiles_of(spec, context))
    for phase in PHASES:
        bind_as(folder, phase, decoder_model(spec.decoder, layout, precision, phase=phase))
    return folder


@pytest.mark.parametrize("context", [200, 1000, 2100])
@pytest.mark.parametrize(("recipe", "precision"), RECIPES)
def test_the_plan_is_what_the_engine_takes(sized, tmp_path, recipe, precision, context):
    folder = compiled_bundle(sized, tmp_path, recipe, precision, context)
    describe_plans(folder)
    board = load(Bundle(folder), FakeDriver())
    taken = board.engine.memory_bytes
    spec, chosen = sized[0].spec, load_recipe(recipe)
    weights = weight_bytes(bundle_layout(folder), precision)
    assert engine_bytes(spec, weights, precision, context, SCRATCH_BYTES) == taken
    assert sum(taken.values()) == board.driver.taken_bytes()
    parts = footprint(spec, chosen, context, precision, SCRATCH_BYTES)
    ours = [part for part in parts if part.name not in (*MAPPED, *IN_THE_PLANS)]
    assert sum(part.n_bytes for part in ours) == sum(taken.values()), ours
    board.engine.close()


SCRATCH = {
    "vision.plan": {"live": 5, "large": 90_000_000},
    "prefill.plan": {"prefill": 54_321},
}


@pytest.fixture(scope="module")
def for_1000(sized, tmp_path_factory):
    """A bundle compiled on an Orin, for 1000 tokens."""
    folder = compiled_bundle(sized, tmp_path_factory.mktemp("for_1000"), "w4a16", DEVICE, 1000)
    describe_plans(folder, Plans("10.13", "8.7", 1000, SCRATCH))
    return folder


def test_plans_without_our_kernels_count_where_they_are(sized, tmp_path, capsys):
    """So small experts compile as operators."""
    folder = compiled_bundle(sized, tmp_path, "bf16", DEVICE, 1000)
    assert make_plan(sized[0].spec, "agx-orin-64", "bf16", 1000, 2).decode_tokens_s is None
    describe_plans(folder, Plans("10.13", "8.7", 1000, SCRATCH))
    said = planned(folder, capsys, 1000, recipe="bf16")
    assert scratch_of(said) == ("scratch memory (the plans say)", 54_321)
    assert said["decode_tokens_s"] > 0


def planned(folder, capsys, context, board="agx-orin-64", recipe="w4a16"):
    """What the command says."""
    options = ["--board", board, "--recipe", recipe, "--context", str(context)]
    assert cli.main(["plan", str(folder), *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def scratch_of(said):
    (found,) = [(p["name"], p["n_bytes"]) for p in said["parts"] if p["name"].startswith("scratch")]
    return found


@pytest.mark.parametrize("context", [1, 200, 1000])
def test_a_compiled_bundle_takes_what_its_plans_do(for_1000, capsys, context):
    said = planned(for_1000, capsys, context)
    assert scratch_of(said) == ("scratch memory (the plans say)", 54_321)
    engine = load(Bundle(for_1000), FakeDriver()).engine
    taken = engine.memory_bytes
    engine.close()
    not_ours = (*MAPPED, *IN_THE_PLANS)
    ours = [p["n_bytes"] for p in said["parts"] if p["name"] not in not_ours]
    reserved = BOARDS["agx-orin-64"].reserved_bytes()
    assert sum(ours) - sum(reserved.values()) - 54_321 == sum(taken.values()) - SCRATCH_BYTES
    assert "a large picture takes 90 MB more for its call" in said["notes"]
    assert any("compile again for less" in note for note in said["notes"]) is (context < 1000)


@pytest.mark.parametrize(
    "changed", [{"context": 1001}, {"board": "thor-64"}, {"recipe": "int4"}, {"recipe": "orin"}]
)
def test_plans_for_another_board_recipe_or_context_tell_nothing(sized, for_1000, capsys, changed):
    wanted = {"context": 200, **changed}
    said = planned(for_1000, capsys, **wanted)
    name, n_bytes = scratch_of(said)
    assert name == "scratch memory (estimate)"
    assert n_bytes != 54_321
    context, board = wanted["context"], wanted.get("board", "agx-orin-64")
    plain = make_plan(sized[0].spec, board, wanted.get("recipe", "w4a16"), context, 2)
    assert said["needed_bytes"] == plain.needed_bytes
