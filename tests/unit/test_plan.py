"""The plan's arithmetic against what is published, and what it says when nothing fits."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import msgspec
import pytest
from make_tiny_checkpoint import decoder_tensors
from published_config import CONFIG
from synthesize_checkpoint import inventory

from build_engine.boards import BOARDS, GIB, Board
from build_engine.cli import main
from build_engine.decoder_layout import recipe_layout
from build_engine.footprint import (
    KINDS,
    Decoded,
    Part,
    decode_bytes,
    decoded_bytes,
    decoder_parts,
    encoder_parameters,
    footprint,
    has_gpu_experts,
    kv_bytes_per_token,
    recurrent_state_bytes,
    scratch_bytes,
    vision_scratch_bytes,
)
from build_engine.graphs.decoder import DEVICE, DEVICE_FP8, decoder_model
from build_engine.plan import Plan, make_plan, read_spec
from build_engine.plans import TARGETS, Options, orders
from build_engine.recipe import known_recipes, load_recipe
from build_engine.traffic import MODULES, PARTS, PEERS, Moved, Peer, decode_traffic, whole
from edge.errors import BundleError, CheckpointError, ConfigurationError
from edge.model.spec import model_spec

SPEC = model_spec(CONFIG, {})
DECODER = SPEC.decoder
BF16_RECIPE = load_recipe("bf16")
CORRECTION_BIASES = 23 * 128  # in the file, but not counted as parameters


def test_parameters_are_the_published_ones():
    counts = {part.name: part.n_parameters for part in decoder_parts(DECODER, BF16_RECIPE)}
    assert list(counts) == list(KINDS)
    assert all(counts.values())
    assert sum(counts.values()) - CORRECTION_BIASES == 31_577_937_344
    counts["routed experts"] = counts["routed experts"] * 6 // 128  # those that a token meets
    counts["embeddings"] = 0
    assert sum(counts.values()) - CORRECTION_BIASES == 3_227_751_872
    layer_scales_not_in_the_file = 81_920
    assert encoder_parameters(SPEC.vision, SPEC.audio, DECODER.hidden_size) == {
        "vision encoder": 653_693_440 - layer_scales_not_in_the_file,
        "vision projector": 159_912_960,
        "audio encoder": 608_879_616,
        "audio projector": 15_205_376,
    }


def test_the_longest_sequence_is_the_one_that_the_configuration_names():
    assert (DECODER.trained_tokens, DECODER.max_tokens) == (131_072, 262_144)
    unnamed = {key: value for key, value in CONFIG.items() if key != "max_sequence_length"}
    assert model_spec(unnamed, {}).decoder.trained_tokens == 262_144


def test_state_is_the_published_one():
    assert kv_bytes_per_token(DECODER) == 6144  # whatever a recipe says: as the graphs bind them
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


@pytest.mark.parametrize("layout", ["bf16", "fp8", "nvfp4"])
def test_bytes_are_those_of_a_checkpoint_in_that_layout(layout):
    matrices = {"bf16", "fp8", "nvfp4"}
    parts = decoder_parts(DECODER, load_recipe(layout))
    planned = sum(part.n_bytes for part in parts if part.format in matrices)
    tensors = inventory(CONFIG, layout)
    in_file = sum(
        math.prod(shape) * dtype.itemsize
        for name, (dtype, shape) in tensors.items()
        if name.startswith("language_model.") and len(shape) == 2 and ".gate." not in name
    )
    assert planned == in_file
    # a bundle keeps the rest in float32, whatever the file has
    rest = [
        math.prod(shape)
        for name, shape in decoder_tensors(CONFIG["llm_config"])
        if len(shape) != 2 or ".gate." in name
    ]
    assert sum(part.n_bytes for part in parts if part.format == "fp32") == 4 * sum(rest)
    assert {part.format for part in parts} <= {*matrices, "fp32"}


def test_int4_keeps_what_its_blocks_do_not_divide_in_another_format():
    parts = decoder_parts(DECODER, load_recipe("int4"))
    experts = {part.format: part.n_bytes for part in parts if part.name == "routed experts"}
    matrix = 23 * 128 * 2688 * 1856
    assert experts == {"int4": matrix * 4.25 / 8, "w4a16": matrix * 4.5 / 8}


def test_another_recipe_gives_another_plan(tmp_path, capsys):
    own = tmp_path / "own.toml"
    rule = '[[rules]]\nmodules = "*.shared_experts.up_proj"\nformat = "fp8"\n'
    own.write_text(f'description = "mine"\nkv_cache = "fp8"\n{rule}')
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    arguments = [str(tmp_path), "--board", "thor-128", "--recipe", str(own), "--json"]
    assert main(["plan", *arguments]) == 0
    values = json.loads(capsys.readouterr().out)
    plain = make_plan(SPEC, "thor-128", "bf16", 8192, 2)
    shared, scales = 23 * 2688 * 3712, 23 * 2 * 256  # of weights and inputs, each aligned
    assert plain.needed_bytes - values["needed_bytes"] == shared - scales
    assert plain.decode_bytes - values["decode_bytes"] == shared
    formats = [part["format"] for part in values["parts"] if part["name"] == "shared experts"]
    assert formats == ["fp8", "bf16"]


def test_decode_is_bound_by_what_a_token_reads(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text('description = "mine"\nrules = [{modules = "*.experts.*", format = "w4a16"}]\n')
    result = make_plan(SPEC, "thor-128", str(own), 1000, 2)
    sizes = {part.name: part.n_bytes for part in decoder_parts(DECODER, load_recipe(str(own)))}
    skipped = sizes["embeddings"] + sizes["routed experts"] * 122 // 128
    state = 2 * recurrent_state_bytes(DECODER)
    assert result.decode_bytes == sum(sizes.values()) - skipped + 2 * 2688 + state
    assert result.decode_bytes_full == result.decode_bytes + 1000 * 6144
    assert not result.decode_bytes_compiled  # stored bytes: no plan of it was counted
    assert result.decode_tokens_s[0] == 0.75 * 273e9 / result.decode_bytes
    table = result.table()
    assert "at most 44.6 tokens/s" in table
    assert "at least 4.59 GB" in table
    assert "what is stored; no plan" in table


@pytest.mark.parametrize(
    ("board", "recipe"), [("agx-orin-64", "orin"), ("agx-orin-32", "w4a16"), ("thor-64", "nvfp4")]
)
def test_decode_is_told_by_what_a_compiled_plan_moves(board, recipe):
    result = make_plan(SPEC, board, recipe, 8192, 2)
    assert result.decode_bytes_compiled
    moved = decode_traffic(DECODER, BOARDS[board].target, recipe)
    assert result.decode_bytes == moved.n_bytes + 1024 * moved.row_bytes
    assert result.decode_bytes_full == moved.n_bytes + 8192 * moved.row_bytes
    assert result.decode_bytes > decode_bytes(DECODER, load_recipe(recipe))
    assert result.decode_bytes_full - result.decode_bytes >= 7168 * 6144  # keys and values, once
    empty, _ = result.decode_tokens_s
    assert empty == 0.75 * BOARDS[board].bandwidth_bytes_s / result.decode_bytes
    table = result.table()
    assert f"{empty:.1f} tokens/s, " in table
    assert "at most" not in table
    assert "at least" not in table


def test_what_was_counted_of_other_sizes_or_rules_is_not_taken_for_it(tmp_path):
    longer = msgspec.structs.replace(DECODER, max_tokens=DECODER.max_tokens * 2)
    assert decode_traffic(longer, "orin", "orin")
    narrow = msgspec.structs.replace(DECODER, expert_size=1024)
    assert decode_traffic(narrow, "orin", "orin") is None
    own = tmp_path / "orin.toml"
    own.write_text('description = "mine"\n')
    assert not make_plan(SPEC, "agx-orin-64", str(own), 8192, 2).decode_bytes_compiled


@pytest.mark.parametrize(("board", "first"), [("agx-orin-64", "orin"), ("thor-64", "nvfp4")])
def test_the_recipe_with_the_fewest_bytes_on_a_board_comes_first(board, first):
    fits = make_plan(SPEC, board, "orin", 8192, 2).recipes_that_fit
    assert fits[0] == first
    counted = [decode_traffic(DECODER, BOARDS[board].target, name) is not None for name in fits]
    assert counted == sorted(counted, reverse=True)


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


@pytest.mark.parametrize(
    ("recipe", "precision", "context", "recorded"),
    [
        ("bf16", DEVICE, 8192, 480_903_680),
        ("bf16", DEVICE, 32_768, 1_663_107_072),
        ("w4a16", DEVICE, 8192, 529_793_536),
        ("w4a16", DEVICE, 2048, 309_395_968),
        ("int4", DEVICE, 1, 309_395_968),
    ],
)
def test_scratch_memory_is_near_what_was_recorded(recipe, precision, context, recorded):
    """By TensorRT-RTX for SM86, of blocks M and *: docs/graphs.md."""
    decoded = decoded_bytes(recipe_layout(DECODER, load_recipe(recipe)), precision)
    estimated = scratch_bytes(SPEC, decoded, context)
    assert estimated == pytest.approx(recorded, rel=0.025)


def test_what_does_not_fit_names_what_would():
    result = make_plan(SPEC, "agx-orin-32", "fp8", 8192, 2)
    with pytest.raises(ConfigurationError) as caught:
        result.require_fit()
    message = str(caught.value)
    assert caught.value.exit_code != 0
    assert "\n" not in message
    assert (
        "--recipe orin | nvfp4 | nvfp4-all | w4a16 | int4 | w4a16-all, or --board agx-orin-64"
        in message
    )
    assert "DOES NOT FIT" in result.table()
    assert result.as_dict()["fits"] is False


def test_nothing_fits_the_smallest_boards_and_bf16_only_the_largest():
    plans = {name: make_plan(SPEC, "thor-128", name, 8192, 2) for name in known_recipes()}
    fits = {name: result.boards_that_fit for name, result in plans.items()}
    assert fits["bf16"] == ("thor-128",)
    assert all(not name.startswith(("orin-n", "x")) for names in fits.values() for name in names)
    assert "agx-orin-32" in fits["nvfp4"]


def test_linears_that_are_decoded_by_tables_are_told():
    """Which those are: docs/bytes.md."""

    def said(board: str, recipe: str) -> bool:
        notes = make_plan(SPEC, board, recipe, 1, 1).notes
        return any("other linears in" in n and "by tables" in n for n in notes)

    decoded = [name for name in known_recipes() if said("agx-orin-64", name)]
    assert decoded == ["int4", "nvfp4", "nvfp4-all", "w4a16", "w4a16-all"]
    decoded.remove("nvfp4")  # its other linears are FP8, which Thor multiplies
    assert [name for name in known_recipes() if said("thor-64", name)] == decoded


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("recipe", known_recipes())
def test_a_recipe_was_counted_for_the_board_or_is_for_the_cpu_engine_only(board, recipe):
    result = make_plan(SPEC, board, recipe, 8192, 2)
    one_block = msgspec.structs.replace(DECODER, pattern="E")
    layout = recipe_layout(one_block, load_recipe(recipe))
    try:
        decoder_model(one_block, layout, TARGETS[BOARDS[board].target].precision, kernels=True)
    except BundleError:
        compiles = False
    else:
        compiles = True
    assert result.cpu_only is not compiles
    assert result.decode_bytes_compiled is compiles
    told = result.as_dict()
    assert (told["decode_tokens_s"] is not None) is compiles
    assert (told["decode_tokens_s_full"] is not None) is compiles
    assert any(part.name.startswith("scratch memory") for part in result.parts) is compiles
    assert ("cpu engine only: no GPU kernels for such experts" in result.table()) is not compiles
    assert recipe not in result.recipes_that_fit or compiles


@pytest.mark.parametrize("context", [1, 8192, 65_536, DECODER.max_tokens])
@pytest.mark.parametrize("board", ["agx-orin-64", "thor-128"])
def test_compile_allows_the_scratch_memory_that_the_plan_tells(tmp_path, board, context):
    target = TARGETS[BOARDS[board].target]
    one_of_each = msgspec.structs.replace(DECODER, pattern="M*E")
    spec = msgspec.structs.replace(SPEC, decoder=one_of_each)
    options = Options(context, kernels=tmp_path)
    for recipe in ("orin", "nvfp4", "w4a16-all"):
        layout = recipe_layout(one_of_each, load_recipe(recipe))
        made = orders(spec, layout, None, tmp_path, target, options)
        parts = make_plan(SPEC, board, recipe, context, 2).parts
        (told,) = [part.n_bytes for part in parts if part.name == "scratch memory (estimate)"]
        for order in made:
            assert order.workspace_bytes >= max(1.1 * told, 2 * GIB), recipe


@pytest.mark.parametrize("board", BOARDS)
def test_what_others_reach_is_told_for_the_board_that_they_have(board):
    table = make_plan(SPEC, board, "orin", 8192, 2).table()
    told = BOARDS[MODULES[BOARDS[board].target]]
    as_fast = BOARDS[board].bandwidth_bytes_s == told.bandwidth_bytes_s
    for peer in PEERS:
        shown = f"{peer.tokens_s} tokens/s: {peer.what} ({peer.source})" in table
        assert shown is (as_fast and peer.target == BOARDS[board].target)


def test_a_large_picture_is_told_to_take_more():
    notes = make_plan(SPEC, "agx-orin-64", "orin", 8192, 2).notes
    assert "a large picture takes 545 MB more for its call (estimate)" in notes


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
        (("thor-64", "fp4", 1, 1), "recipe 'fp4': is neither known.*w4a16"),
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
    assert sum(part.n_parameters for part in decoder_parts(spec.decoder, BF16_RECIPE)) == in_file
    tensors = inventory(config, "bf16")
    unused = ("running_", "num_batches", ".featurizer.", "input_conditioner")
    encoders = sum(
        math.prod(shape)
        for name, (_, shape) in tensors.items()
        if not name.startswith("language_model.") and not any(part in name for part in unused)
    )
    counted = encoder_parameters(spec.vision, spec.audio, spec.decoder.hidden_size)
    assert sum(counted.values()) == encoders


TOLD = Plan(
    board=Board("small", 10 * GIB, 40_000_000_000, low_precision=False),
    recipe="mine",
    context_tokens=12_000,
    fps=0.5,
    parts=(Part("experts", 3 * GIB, 1_234_567, "int4"), Part("K/V cache", GIB // 4, 0, "fp16")),
    vision_tokens_s=8.0,
    separator_tokens_s=1.5,
    audio_tokens_s=0.5,
    kv_bytes_per_token=4096,
    decode_bytes=1_500_000_000,
    decode_bytes_full=3_000_000_000,
    decode_bytes_compiled=True,
    cpu_only=False,
    peers=(Peer("orin", "another", 12.5, "its authors"),),
    largest_context=50_000,
    recipes_that_fit=("mine", "other"),
    boards_that_fit=("small", "large"),
    notes=("one", "two"),
)
"""Round figures, so that what is printed can be reckoned in the head."""


def test_a_plan_is_told_line_by_line():
    assert TOLD.table().splitlines() == [
        "mine on small, 12,000 tokens of context, 0.5 frames/s",
        "",
        "                                        parameters  format        GiB",
        "experts                                  1,234,567  int4         3.00",
        "K/V cache                                           fp16         0.25",
        "needed                                                           3.25",
        "board                                                           10.00",
        "free                                                             6.75",
        "",
        "perception        10.0 tokens/s = 8.0 vision + 1.5 separators + 0.5 sound",
        "context           12,000 tokens last 20.0 min; K/V grow by 141 MiB/h",
        "decode            20.0 tokens/s, 10.0 with the context full, at 75% of 40 GB/s",
        "bytes of a token  1.50 GB, 3.00 with the context full: what the kernels of a compiled "
        "plan read and write",
        "largest context   50,000 tokens",
        "recipes that fit  mine, other",
        "boards that fit   small, large",
        "others reach      12.5 tokens/s: another (its authors)",
        "note              one",
        "note              two",
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"recipes_that_fit": ()}, "recipes that fit  none"),
        ({"boards_that_fit": ()}, "boards that fit   none"),
        ({"largest_context": 0}, "largest context   0 tokens"),
        (
            {"cpu_only": True},
            "decode            cpu engine only: no GPU kernels for such experts",
        ),
        (
            {"decode_bytes_compiled": False},
            "decode            at most 20.0 tokens/s, 10.0 with the context full, at 75% of "
            "40 GB/s",
        ),
        (
            {"decode_bytes_compiled": False},
            "bytes of a token  at least 1.50 GB, 3.00 with the context full: what is stored; no "
            "plan of this recipe and these sizes was counted for this board",
        ),
        (
            {"parts": (Part("experts", 10 * GIB), Part("more", GIB // 2))},
            "DOES NOT FIT                                                    -0.50",
        ),
        (
            {"parts": (Part("experts", 10 * GIB),)},
            "free                                                             0.00",
        ),
    ],
)
def test_what_is_missing_or_open_is_told(changes, line):
    assert line in dataclasses.replace(TOLD, **changes).table().splitlines()


@pytest.mark.parametrize(
    ("n_tokens", "told"),
    [(894, "89 s"), (900, "1.5 min"), (53_990, "90.0 min"), (54_000, "1.5 h"), (90_000, "2.5 h")],
)
def test_the_length_of_a_context_is_told_in_a_fitting_unit(n_tokens, told):
    plan = dataclasses.replace(TOLD, context_tokens=n_tokens)
    assert f"tokens last {told}; K/V" in plan.table()


def test_machines_are_told_the_same():
    values = json.loads(json.dumps(TOLD.as_dict()))
    assert {key: values[key] for key in values if key not in ("parts", "board")} == {
        "recipe": "mine", "context_tokens": 12_000, "fps": 0.5, "vision_tokens_s": 8.0,
        "separator_tokens_s": 1.5, "audio_tokens_s": 0.5, "kv_bytes_per_token": 4096,
        "decode_bytes": 1_500_000_000, "decode_bytes_full": 3_000_000_000,
        "decode_bytes_compiled": True, "cpu_only": False, "largest_context": 50_000,
        "peers": [
            {"target": "orin", "what": "another", "tokens_s": 12.5, "source": "its authors"}
        ],
        "recipes_that_fit": ["mine", "other"], "boards_that_fit": ["small", "large"],
        "notes": ["one", "two"], "fits": True, "needed_bytes": 13 * GIB // 4,
        "free_bytes": 27 * GIB // 4, "tokens_s": 10.0, "context_s": 1200.0,
        "kv_bytes_per_hour": 10 * 3600 * 4096, "decode_tokens_s": 20.0,
        "decode_tokens_s_full": 10.0,
    }  # fmt: skip
    assert values["parts"][0] == {
        "name": "experts", "n_bytes": 3 * GIB, "n_parameters": 1_234_567, "format": "int4"
    }  # fmt: skip
    assert values["board"] == {
        "name": "small", "memory_bytes": 10 * GIB, "bandwidth_bytes_s": 40_000_000_000,
        "low_precision": False,
    }  # fmt: skip
    full = dataclasses.replace(TOLD, parts=(Part("experts", 10 * GIB),)).as_dict()
    assert (full["fits"], full["free_bytes"]) == (True, 0)


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({}, "use --recipe mine | other, or --context 50000, or --board small"),
        ({"recipes_that_fit": (), "largest_context": 0}, "use --board small"),
        ({"boards_that_fit": (), "largest_context": 0}, "use --recipe mine | other"),
        ({"boards_that_fit": (), "recipes_that_fit": ("mine",)}, "use --recipe mine, or --context"),
        (
            {"boards_that_fit": (), "recipes_that_fit": (), "largest_context": 0},
            "no known board, recipe or context fits",
        ),
    ],
)
def test_what_would_fit_is_advised(changes, remedy):
    full = dataclasses.replace(TOLD, parts=(Part("experts", 10 * GIB),))
    full.require_fit()
    over = dataclasses.replace(full, parts=(*full.parts, Part("a byte", 1)), **changes)
    with pytest.raises(ConfigurationError) as caught:
        over.require_fit()
    said = "mine with 12,000 tokens on small: needs 10.00 of 10.00 GiB; "
    assert str(caught.value).startswith(said + remedy)


BUS = {  # bits of the memory's bus and its clock, of NVIDIA's data sheets; two transfers a clock
    "orin-nano-8": (128, 3200e6), "orin-nx-16": (128, 3200e6), "agx-orin-32": (256, 3200e6),
    "agx-orin-64": (256, 3200e6), "thor-64": (256, 4266e6), "thor-128": (256, 4266e6),
}  # fmt: skip


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_has_the_memory_of_its_name_and_the_bandwidth_of_its_bus(name):
    plan = make_plan(SPEC, name, "orin", 1, 0)
    board = plan.board
    assert board.memory_bytes == int(name.rpartition("-")[2]) * 2**30
    bits, clock_hz = BUS[name]
    assert board.bandwidth_bytes_s == pytest.approx(bits / 8 * 2 * clock_hz, rel=0.004)
    assert board.target == ("thor" if name.startswith("thor") else "orin")
    # docs/jetson.md: 1/16 for the firmware, 1.5 GiB each for the system and for CUDA
    assert {part.name: part.n_bytes for part in plan.parts[-3:]} == {
        "carved out by firmware (estimate)": board.memory_bytes / 16,
        "system and service (estimate)": 1.5 * 2**30,
        "CUDA and TensorRT (estimate)": 1.5 * 2**30,
    }


def test_the_notes_of_a_recipe_without_gpu_kernels_end_with_it():
    assert make_plan(SPEC, "thor-128", "fp8", 8192, 2).notes == (
        "an engine on the GPU would compute the experts by our kernels, which take NVFP4 and INT4 "
        "weights only",
    )


def test_the_notes_name_the_formats_that_are_decoded_by_tables(tmp_path):
    decoded, large, bandwidth = make_plan(SPEC, "agx-orin-64", "nvfp4", 8192, 2).notes
    assert decoded == (
        "agx-orin-64 reads the routed experts as they are, by our kernels; other linears in FP8 "
        "are decoded by tables into memory and read again, which saves memory only"
    )
    assert large == "a large picture takes 545 MB more for its call (estimate)"
    assert bandwidth == (
        "decode is bandwidth only, a share of the published peak; nothing here is measured"
    )
    formats = {"*.experts.*": "nvfp4", "*.q_proj": "w4a16", "*.in_proj": "fp8"}
    rules = [f'{{modules = "{m}", format = "{f}"}}' for m, f in formats.items()]
    (tmp_path / "own.toml").write_text(f'description = "x"\nrules = [{", ".join(rules)}]\n')
    own = str(tmp_path / "own.toml")
    assert "other linears in FP8 and W4A16 are" in make_plan(SPEC, "orin-nx-16", own, 1, 1).notes[0]
    assert "other linears in W4A16 are" in make_plan(SPEC, "thor-64", own, 1, 1).notes[0]


def test_a_model_without_large_pictures_has_no_note_of_them():
    vision = msgspec.structs.replace(SPEC.vision, max_patches=SPEC.vision.video_target_patches)
    small = msgspec.structs.replace(SPEC, vision=vision)
    assert not any("picture" in note for note in make_plan(small, "thor-64", "orin", 1, 1).notes)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "is missing; give a checkpoint's folder"),
        ("{", "is not JSON (Expecting property name"),
        ("[]", "is not a JSON object; download it again"),
    ],
)
def test_a_configuration_that_cannot_be_read_says_why(tmp_path, text, problem):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        read_spec(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: {problem}")


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(CheckpointError, match=r"model/config\.json: is missing"):
        read_spec(tmp_path / "model")


@pytest.mark.parametrize(
    ("recipe", "pattern", "context", "recorded", "rel"),
    [
        ("bf16", "*", 8192, 481e6, 0.002),
        ("w4a16", "*", 8192, 530e6, 0.01),
        ("w4a16", "M", 8192, 309e6, 0.002),
        ("int4", "M", 1, 309e6, 0.002),
        ("bf16", "E", 1, 139e6, 0.07),  # of the audio encoder
    ],
)
def test_scratch_memory_of_each_block_is_near_what_was_recorded(
    recipe, pattern, context, recorded, rel
):
    """By TensorRT-RTX for SM86, each alone: docs/graphs.md."""
    decoder = msgspec.structs.replace(DECODER, pattern=pattern)
    vision = msgspec.structs.replace(SPEC.vision, video_target_patches=4, max_patches=4)
    spec = msgspec.structs.replace(SPEC, decoder=decoder, vision=vision)
    decoded = decoded_bytes(recipe_layout(decoder, load_recipe(recipe)), DEVICE)
    assert scratch_bytes(spec, decoded, context) == pytest.approx(recorded, rel=rel)


def test_scratch_memory_of_pictures_is_near_what_was_recorded():
    live, large = vision_scratch_bytes(SPEC.vision)
    assert live == pytest.approx(136e6, rel=0.005)
    assert large == pytest.approx(1.2 * 459e6, rel=0.02)  # a fifth too much, as it says
    decoder = msgspec.structs.replace(DECODER, pattern="")
    silent = msgspec.structs.replace(SPEC.audio, subsampling_channels=1)
    spec = msgspec.structs.replace(SPEC, decoder=decoder, audio=silent)
    assert scratch_bytes(spec, Decoded(0, 0, 0), 1) == live
    assert scratch_bytes(spec, Decoded(0, 0, 10**9), 1) == 10**9


def test_experts_and_embeddings_are_not_decoded_whole():
    layout = recipe_layout(DECODER, load_recipe("int4"))
    found = decoded_bytes(layout, DEVICE)
    in_proj = DECODER.d_inner + DECODER.conv_dim + DECODER.mamba_n_heads
    assert found.mamba == in_proj * DECODER.hidden_size * 8
    heads = DECODER.n_q_heads * DECODER.head_dim
    assert found.attention == heads * DECODER.hidden_size * 8
    assert found.anywhere == max(found.mamba, found.attention)
    fp8 = recipe_layout(DECODER, load_recipe("fp8"))
    assert decoded_bytes(fp8, DEVICE).mamba == in_proj * DECODER.hidden_size * 4
    assert decoded_bytes(fp8, DEVICE_FP8) == (0, 0, 0)  # Thor multiplies it as it is
    assert decoded_bytes(recipe_layout(DECODER, BF16_RECIPE), DEVICE) == (0, 0, 0)


OF_KIND = {
    "embeddings": r"embeddings\.weight",
    "lm_head": r"lm_head\.weight",
    "Mamba linears": r"\.(in|out)_proj\.weight",
    "attention q, k, v": r"\.[qkv]_proj\.weight",
    "attention o": r"\.o_proj\.weight",
    "routed experts": r"\.experts\.\d+\.(up|down)_proj\.weight",
    "shared experts": r"\.shared_experts\.(up|down)_proj\.weight",
    "router": r"\.gate\.weight",
}
"""By line of the table: the published names of its tensors."""


def test_each_kind_counts_the_tensors_of_its_name():
    counts = dict.fromkeys([*OF_KIND, "small tensors"], 0)
    for name, shape in decoder_tensors(CONFIG["llm_config"]):
        kinds = [kind for kind, pattern in OF_KIND.items() if re.search(pattern, name)]
        assert len(kinds) < 2
        counts[kinds[0] if kinds else "small tensors"] += math.prod(shape)
    parts = decoder_parts(DECODER, BF16_RECIPE)
    assert {part.name: part.n_parameters for part in parts} == counts
    assert {part.name: part.format for part in parts} == {
        **dict.fromkeys(counts, "bf16"), "router": "fp32", "small tensors": "fp32"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "scratch", "told"),
    [("orin", None, "estimate"), ("orin", 54_321, "the plans say"), ("bf16", 7, "the plans say")],
)
def test_all_that_takes_memory_is_a_part(recipe, scratch, told):
    chosen = load_recipe(recipe)
    parts = list(footprint(SPEC, chosen, 8000, DEVICE, scratch))
    kinds = decoder_parts(DECODER, chosen)
    assert tuple(parts[: len(kinds)]) == kinds
    others = {part.name: (part.format, part.n_bytes) for part in parts[len(kinds) :]}
    encoders = encoder_parameters(SPEC.vision, SPEC.audio, DECODER.hidden_size)
    assert list(others) == [
        "scales of tensors, alignment", *encoders, "K/V cache, 3 states",
        "recurrent state, 3 states twice", "recurrent state, 2 snapshots",
        f"scratch memory ({told})", "inputs, outputs, pinned memory",
    ]  # fmt: skip
    for name, count in encoders.items():
        assert others[name] == ("bf16", 2 * count)
    state = recurrent_state_bytes(DECODER)
    assert others["K/V cache, 3 states"] == ("fp16", 3 * 8192 * 6144)  # in steps of 256 rows
    assert others["recurrent state, 3 states twice"] == ("fp32", 6 * state)
    assert others["recurrent state, 2 snapshots"] == ("fp32", 2 * state)
    estimated = scratch_bytes(SPEC, decoded_bytes(recipe_layout(DECODER, chosen), DEVICE), 8000)
    assert others[f"scratch memory ({told})"] == ("", scratch or estimated)
    counted = [part.n_parameters for part in parts[len(kinds) :]]
    assert sorted(filter(None, counted)) == sorted(encoders.values())


def test_a_cache_is_no_longer_than_the_models_longest_sequence():
    decoder = msgspec.structs.replace(DECODER, max_tokens=300)
    spec = msgspec.structs.replace(SPEC, decoder=decoder)
    parts = {part.name: part.n_bytes for part in footprint(spec, BF16_RECIPE, 290)}
    assert parts["K/V cache, 3 states"] == 3 * 300 * 6144


def test_a_model_without_attention_or_mamba_needs_nothing_for_it():
    only_experts = msgspec.structs.replace(DECODER, pattern="E")
    assert kv_bytes_per_token(only_experts) == 0
    assert recurrent_state_bytes(only_experts) == 0
    spec = msgspec.structs.replace(SPEC, decoder=only_experts)
    at_most = [scratch_bytes(spec, Decoded(0, 0, 0), n) for n in (1, 262_144)]
    assert at_most[0] == at_most[1]  # nothing grows with the past


def test_all_experts_must_be_of_a_format_that_kernels_read(tmp_path):
    def reads(*formats):
        rules = [f'{{modules = "{m}", format = "{f}"}}' for m, f in formats]
        path = tmp_path / "own.toml"
        path.write_text(f'description = "x"\nrules = [{", ".join(rules)}]\n')
        return has_gpu_experts(DECODER, load_recipe(str(path)))

    up, down = "*.experts.*.up_proj", "*.experts.*.down_proj"
    assert reads((up, "w4a16"), (down, "int4"))
    assert not reads((up, "w4a16"))
    assert not reads((down, "nvfp4"))
    assert not reads((up, "fp8"), (down, "nvfp4"))
    dense = msgspec.structs.replace(DECODER, pattern="M*")
    assert has_gpu_experts(dense, BF16_RECIPE)  # none is there to be read


def test_a_recipe_that_is_a_file_of_a_known_name_is_not_taken_for_it(tmp_path):
    """Its bytes are what it stores; the known one's were counted."""
    (tmp_path / "orin.toml").write_text('description = "mine"\n')
    own = make_plan(SPEC, "agx-orin-64", str(tmp_path / "orin.toml"), 8192, 2)
    assert own.decode_bytes == decode_bytes(DECODER, BF16_RECIPE)
    assert own.recipe == str(tmp_path / "orin.toml")


@pytest.mark.parametrize(("context", "rows"), [(1, 1024), (1024, 1024), (1025, 1025)])
def test_decode_reads_a_first_bucket_at_least(context, rows):
    plan = make_plan(SPEC, "thor-64", "nvfp4", context, 2)
    moved = decode_traffic(DECODER, "thor", "nvfp4")
    assert plan.decode_bytes_full == moved.n_bytes + rows * moved.row_bytes


@pytest.mark.parametrize("context", [1, 262_144])
def test_the_shortest_and_the_longest_context_can_be_planned(context):
    assert make_plan(SPEC, "thor-128", "nvfp4", context, 0).context_tokens == context


def test_no_context_at_all_where_the_weights_alone_do_not_fit():
    plan = make_plan(SPEC, "orin-nano-8", "nvfp4", 1, 2)
    assert plan.largest_context == 0
    assert plan.recipes_that_fit == ()
    with pytest.raises(ConfigurationError) as caught:
        plan.require_fit()
    assert "--context" not in caught.value.remedy
    assert "--recipe" not in caught.value.remedy


def test_counted_recipes_come_in_the_order_of_their_bytes():
    def n_bytes(name):
        return make_plan(SPEC, "thor-128", name, 8192, 2).decode_bytes

    fits = make_plan(SPEC, "thor-128", "bf16", 8192, 2).recipes_that_fit
    assert list(fits) == sorted(fits, key=n_bytes)
    assert set(fits) == {"orin", "int4", "nvfp4", "nvfp4-all", "w4a16", "w4a16-all"}


def test_what_moves_adds_up_over_the_blocks():
    one = Moved(3, 100, 7)
    assert one + Moved(1, 10, 1) == Moved(4, 110, 8)
    assert one.times(4) == Moved(12, 400, 28)
    assert one.less(Moved(1, 10, 2)) == Moved(2, 90, 5)
    parts = {"M": Moved(1, 1), "*": Moved(10, 100, 1000), "E": Moved(2, 5), "head": Moved(7, 7)}
    blocks = msgspec.structs.replace(DECODER, pattern="MM*E")
    assert whole(blocks, parts) == Moved(2 + 10 + 2 + 7, 2 + 100 + 5 + 7, 1000)


def test_of_unknown_targets_and_recipes_nothing_was_counted():
    assert decode_traffic(DECODER, "this-gpu", "orin") is None
    assert decode_traffic(DECODER, "orin", "bf16") is None


def test_boards_are_those_of_the_data_sheets():
    """Memory in GiB, GB/s, and whether it multiplies FP8 and FP4."""
    found = {
        name: (board.memory_bytes / GIB, board.bandwidth_bytes_s / 1e9, board.low_precision)
        for name, board in BOARDS.items()
    }
    assert found == {
        "orin-nano-8": (8, 102, False),
        "orin-nx-16": (16, 102.4, False),
        "agx-orin-32": (32, 204.8, False),
        "agx-orin-64": (64, 204.8, False),
        "thor-64": (64, 273, True),
        "thor-128": (128, 273, True),
    }
    assert {board.target for board in BOARDS.values() if board.low_precision} == {"thor"}
    assert {board.target for board in BOARDS.values() if not board.low_precision} == {"orin"}
    taken = BOARDS["agx-orin-32"].reserved_bytes().values()
    assert [n_bytes / GIB for n_bytes in taken] == [2, 1.5, 1.5]


def test_what_parts_are_called_for_a_person():
    assert PARTS == {"M": "Mamba2", "*": "attention", "E": "MoE", "head": "head"}
