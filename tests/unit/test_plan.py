"""The plan's arithmetic against what is published, and what it says when nothing fits."""

from __future__ import annotations

import json
import math

import pytest
from make_tiny_checkpoint import BF16, decoder_tensors
from published_config import CONFIG
from synthesize_checkpoint import inventory

from build_engine import plan
from build_engine.plan import (
    BOARDS,
    FORMATS,
    GIB,
    RECIPES,
    Board,
    active_parameters,
    decoder_weights,
    encoder_parameters,
    kv_bytes_per_token,
    make_plan,
    read_spec,
    recurrent_state_bytes,
)
from edge.errors import CheckpointError, ConfigurationError
from edge.model.spec import model_spec

SPEC = model_spec(CONFIG, {})
DECODER = SPEC.decoder
CORRECTION_BIASES = 23 * 128  # in the file, but not counted as parameters


def test_parameters_are_the_published_ones():
    total = sum(part.n_parameters for part in decoder_weights(DECODER, "bf16"))
    assert total - CORRECTION_BIASES == 31_577_937_344
    assert active_parameters(DECODER) - CORRECTION_BIASES == 3_227_751_872
    layer_scales_not_in_the_file = 81_920
    assert encoder_parameters(SPEC.vision, SPEC.audio, DECODER.hidden_size) == {
        "vision encoder": 653_693_440 - layer_scales_not_in_the_file,
        "vision projector": 159_912_960,
        "audio encoder": 608_879_616,
        "audio projector": 15_205_376,
    }


def test_state_is_the_published_one():
    assert kv_bytes_per_token(DECODER, "bf16") == 6144
    assert kv_bytes_per_token(DECODER, "nvfp4") == 3072
    assert round(recurrent_state_bytes(DECODER) / 2**20, 1) == 46.8


@pytest.mark.parametrize(
    ("fps", "tokens_s", "minutes", "kv_mib"),
    [(1, 147.5, 29.6, 3111), (2, 282.5, 15.5, 5959), (8, 1092.5, 4.0, 23045)],
)
def test_rates(fps, tokens_s, minutes, kv_mib):
    result = make_plan(SPEC, "thor-128", "bf16", 262_144, fps)
    assert result.tokens_s == tokens_s
    assert round(result.context_s / 60, 1) == minutes
    assert round(result.kv_bytes_per_hour / 2**20) == kv_mib


def test_sound_alone_still_fills_the_context():
    assert make_plan(SPEC, "thor-128", "nvfp4", 750, 0).context_s == 60


@pytest.mark.parametrize(
    ("name", "n_bytes"),
    [
        ("bf16", 2 * 2688 * 1856),
        ("fp8", 2688 * 1856 + 8),
        ("nvfp4", 2688 * (928 + 116) + 8),
        ("w4a16", 2688 * (928 + 116) + 4),
        ("int4", 2688 * (928 + 15 * 2)),  # 1856 columns are 14.5 blocks of 128
    ],
)
def test_bytes_of_one_expert(name, n_bytes):
    assert FORMATS[name].n_bytes(2688, 1856) == n_bytes


@pytest.mark.parametrize("layout", ["bf16", "fp8", "nvfp4"])
def test_bytes_are_those_of_a_checkpoint_in_that_layout(layout):
    tensors = inventory(CONFIG, layout)
    in_file = sum(
        math.prod(shape) * dtype.itemsize
        for name, (dtype, shape) in tensors.items()
        if name.startswith("language_model.")
    )
    # these are float32 in the file: the router, and the biases of its choice
    wide = [n for n, _ in decoder_tensors(CONFIG["llm_config"]) if tensors[n][0] != BF16]
    routers = [math.prod(tensors[n][1]) for n in wide if ".gate." in n]
    assert len(routers) == 46
    planned = sum(part.n_bytes for part in decoder_weights(DECODER, layout))
    assert planned == in_file - 2 * sum(routers)


def test_decode_is_bound_by_what_a_token_reads():
    result = make_plan(SPEC, "thor-128", "bf16", 1000, 2)
    state = 2 * recurrent_state_bytes(DECODER)
    assert result.decode_bytes == 2 * active_parameters(DECODER) + 2 * 2688 + state
    assert result.decode_bytes_full == result.decode_bytes + 1000 * 6144
    assert result.decode_tokens_s[0] == 273e9 / result.decode_bytes
    # above what others measured on this board: 71 to 73 tokens/s in NVFP4
    assert 73 < make_plan(SPEC, "thor-128", "nvfp4", 8192, 2).decode_tokens_s[0] < 100


def test_parts_add_up_and_the_largest_context_is_the_largest(monkeypatch):
    small = Board("small", 27 * GIB, 10**11, low_precision=True)
    monkeypatch.setitem(BOARDS, "small", small)
    most = make_plan(SPEC, "small", "nvfp4", 8192, 2).largest_context
    assert 8192 < most < DECODER.max_tokens
    fits = make_plan(SPEC, "small", "nvfp4", most, 2)
    fits.require_fit()
    assert fits.needed_bytes + fits.free_bytes == small.memory_bytes
    assert "small" in fits.boards_that_fit
    too_long = make_plan(SPEC, "small", "nvfp4", most + 1, 2)
    assert too_long.free_bytes < 0
    with pytest.raises(ConfigurationError, match=rf"--context {most}\b.*--board agx-orin-32"):
        too_long.require_fit()


def test_what_does_not_fit_names_what_would():
    result = make_plan(SPEC, "agx-orin-32", "fp8", 8192, 2)
    with pytest.raises(ConfigurationError) as caught:
        result.require_fit()
    message = str(caught.value)
    assert caught.value.exit_code != 0
    assert "\n" not in message
    assert "--recipe w4a16 | int4 | nvfp4 | nvfp4-all, or --board agx-orin-64" in message
    assert "DOES NOT FIT" in result.table()
    assert result.as_dict()["fits"] is False


def test_nothing_fits_the_smallest_boards_and_bf16_only_the_largest():
    fits = {name: make_plan(SPEC, "thor-128", name, 8192, 2).boards_that_fit for name in RECIPES}
    assert fits["bf16"] == ("thor-128",)
    assert all(not name.startswith(("orin-n", "x")) for names in fits.values() for name in names)
    assert "agx-orin-32" in fits["nvfp4"]


def test_orin_is_told_that_it_has_no_low_precision():
    def said(board: str, recipe: str) -> bool:
        return any("decoded to FP16" in n for n in make_plan(SPEC, board, recipe, 1, 1).notes)

    assert [name for name in RECIPES if said("agx-orin-64", name)] == ["nvfp4", "nvfp4-all", "fp8"]
    assert not any(said("thor-64", name) for name in RECIPES)


def test_output_for_people_and_for_machines():
    result = make_plan(SPEC, "thor-64", "nvfp4", 16_384, 2)
    table = result.table()
    assert max(map(len, table.splitlines())) < 200
    for part in result.parts:
        assert part.name in table
    values = json.loads(json.dumps(result.as_dict()))
    assert values["fits"] is True
    assert values["board"]["name"] == "thor-64"
    assert values["needed_bytes"] == sum(part["n_bytes"] for part in values["parts"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("thor", "nvfp4", 1, 1), "--board: is 'thor'.*thor-128"),
        (("thor-64", "fp4", 1, 1), "--recipe: is 'fp4'.*w4a16"),
        (("thor-64", "fp8", 0, 1), r"--context: is 0.*1\.\.262144"),
        (("thor-64", "fp8", 262_145, 1), "--context"),
        (("thor-64", "fp8", 1, -1.0), "--fps"),
        (("thor-64", "fp8", 1, math.nan), "--fps"),
        (("thor-64", "fp8", 1, math.inf), "--fps"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        make_plan(SPEC, *arguments)


def test_the_configuration_alone_is_enough(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert read_spec(tmp_path).decoder == DECODER


@pytest.mark.parametrize("text", [None, "{", "[]", "{}"])
def test_a_bad_configuration_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_spec(tmp_path)


@pytest.mark.parametrize("preset", ["base", "wide", "single"])
def test_other_sizes_count_what_their_checkpoint_holds(checkpoint, preset):
    spec = read_spec(checkpoint(preset))
    config = json.loads((checkpoint(preset) / "config.json").read_text())
    in_file = sum(math.prod(shape) for _, shape in decoder_tensors(config["llm_config"]))
    assert sum(part.n_parameters for part in decoder_weights(spec.decoder, "bf16")) == in_file
    tensors = inventory(config, "bf16")
    unused = ("running_", "num_batches", ".featurizer.", "input_conditioner")
    encoders = sum(
        math.prod(shape)
        for name, (_, shape) in tensors.items()
        if not name.startswith("language_model.") and not any(part in name for part in unused)
    )
    counted = encoder_parameters(spec.vision, spec.audio, spec.decoder.hidden_size)
    assert sum(counted.values()) == encoders


def test_every_kind_of_linear_has_parameters():
    assert all(part.n_parameters for part in decoder_weights(DECODER, "bf16"))
    assert set(plan.LINEARS) < set(plan.KINDS)
