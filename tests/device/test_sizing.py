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
from build_engine.bundle import build_bundle
from build_engine.checkpoint import Checkpoint
from build_engine.decoder_layout import bundle_layout, recipe_layout
from build_engine.footprint import engine_bytes, footprint, weight_bytes
from build_engine.graphs.decoder import DEVICE, DEVICE_FP8, decoder_model
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


def test_a_compiled_bundle_tells_its_scratch_memory(sized, tmp_path, capsys):
    folder = compiled_bundle(sized, tmp_path, "w4a16", DEVICE, 1000)
    scratch = {"vision.plan": {"live": 5, "large": 90_000}, "prefill.plan": {"prefill": 54_321}}
    plans = Plans("10.13", "8.7", 1000, scratch)
    describe_plans(folder, plans)

    def said(context):
        options = ["--board", "agx-orin-64", "--recipe", "w4a16", "--context", str(context)]
        assert cli.main(["plan", str(folder), *options, "--json"]) == 0
        parts = json.loads(capsys.readouterr().out)["parts"]
        (found,) = [(p["name"], p["n_bytes"]) for p in parts if p["name"].startswith("scratch")]
        return found

    assert said(1000) == ("scratch memory (the plans say)", 54_321)
    name, n_bytes = said(1001)  # they hold no such context
    assert name == "scratch memory (estimate)"
    assert n_bytes > 54_321
