"""Weights as checkpoints store them: their format, what of it a bundle keeps, what is wrong."""

from __future__ import annotations

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from make_tiny_checkpoint import PRESETS, checkpoint_config, decoder_tensors
from synthesize_checkpoint import quantized_format, synthesize

from build_engine.bundle import build_bundle
from build_engine.checkpoint import Checkpoint
from build_engine.cli import main
from build_engine.pack import pack_linear
from build_engine.recipe import load_recipe
from build_engine.stored import format_of, stored, stored_layout
from edge.engines.bundle import DECODER_WEIGHTS, Bundle
from edge.engines.cpu import CpuEngine
from edge.engines.formats import Nvfp4, deinterleave_nvfp4
from edge.engines.safetensors import SafetensorsFile, write_safetensors
from edge.engines.weights import DecoderWeights
from edge.errors import CheckpointError

BF16, E4M3 = (np.dtype(t) for t in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn))
E2M1 = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6])
FORMATS = ("bf16", "fp8", "nvfp4", "w4a16", "int4")
SHAPE = (4, 256)
TINY = checkpoint_config(PRESETS["grouped"])


@pytest.fixture
def holding(checkpoint, tmp_path):
    """A checkpoint that holds these tensors of a linear `a` and says this of its quantization."""

    def make(tensors, said=None):
        folder = tmp_path / "checkpoint"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in ("config.json", "generation_config.json"):
            shutil.copyfile(checkpoint("base") / name, folder / name)
        if said is not None:
            (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": said}))
        write_safetensors(folder / "model.safetensors", tensors)
        return Checkpoint(folder)

    return make


def linear(chosen, dtype=BF16):
    """Tensors of the linear `a` in a format."""
    weight = np.random.default_rng(0).standard_normal(SHAPE).astype(dtype)
    tensors = pack_linear("a", weight, chosen)
    if chosen in ("fp8", "nvfp4"):
        tensors["a.input_scale"] = np.asarray(np.float32(0.01))
    return tensors


LAYOUTS = {
    "bf16": {"": (BF16, SHAPE)},
    "fp8": {"": (E4M3, SHAPE), ".scale": ("f4", ()), ".input_scale": ("f4", ())},
    "w4a16": {"": ("u1", (4, 128)), ".block_scale": (E4M3, (4, 16)), ".scale": ("f4", ())},
    "int4": {"": ("u1", (2, 256)), ".block_scale": ("f4", (4, 2))},
}
LAYOUTS["nvfp4"] = {**LAYOUTS["w4a16"], ".input_scale": ("f4", ())}


@pytest.mark.parametrize("scalars", ["shape []", "shape [1]"])
@pytest.mark.parametrize("chosen", FORMATS)
def test_every_layout_is_recognised_and_kept(holding, chosen, scalars):
    tensors = linear(chosen)
    if scalars == "shape [1]":
        tensors = {n: v.reshape(1) if v.ndim == 0 else v for n, v in tensors.items()}
    checkpoint = holding(tensors)
    assert format_of(checkpoint, "a") == chosen
    layout = stored_layout(checkpoint, "a.weight", SHAPE)
    assert layout == {end: (np.dtype(d), shape) for end, (d, shape) in LAYOUTS[chosen].items()}
    parts = {f"a{end}": stored(checkpoint, "a.weight", SHAPE, end) for end in layout}
    assert {n: (v.dtype, v.shape) for n, v in parts.items()} == {
        f"a{end}": part for end, part in layout.items()
    }
    if chosen in ("nvfp4", "w4a16"):  # in a bundle's order
        plain = deinterleave_nvfp4(Nvfp4(parts["a"], parts["a.block_scale"], parts["a.scale"]))
        parts_kept = {**parts, "a": plain.codes, "a.block_scale": plain.block_scale}
    else:
        parts_kept = parts
    originals = [v.tobytes() for v in linear(chosen).values()]
    assert sorted(v.tobytes() for v in parts_kept.values()) == sorted(originals)
    values = linear("bf16")["a.weight"].astype(np.float32)
    error = np.abs(DecoderWeights(parts)["a"] - values).max() / np.abs(values).max()
    assert error <= (0 if chosen == "bf16" else 1 / 6)  # half of E2M1's step from 4 to 6


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_other_floats_become_float32(holding, dtype):
    checkpoint = holding({"a.weight": linear("bf16", np.float32)["a.weight"].astype(dtype)})
    assert format_of(checkpoint, "a") == "bf16"
    assert stored_layout(checkpoint, "a.weight", SHAPE) == {"": (np.dtype(np.float32), SHAPE)}
    assert stored(checkpoint, "a.weight", SHAPE, "").dtype == np.float32


def test_int4_scales_may_be_bfloat16(holding):
    tensors = linear("int4")
    tensors["a.weight_scale"] = tensors["a.weight_scale"].astype(BF16)
    checkpoint = holding(tensors)
    assert format_of(checkpoint, "a") == "int4"
    scale = stored(checkpoint, "a.weight", SHAPE, ".block_scale")
    np.testing.assert_array_equal(scale, tensors["a.weight_scale"].astype(np.float32))
    assert scale.dtype == np.float32


def without(chosen, *names):
    return {n: v for n, v in linear(chosen).items() if n.removeprefix("a.") not in names}


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (without("fp8", "weight_scale"), "float8_e4m3fn weights with input_scale"),
        (without("int4", "weight_scale"), "uint8 weights with no scales"),
        (without("nvfp4", "weight_scale_2"), "uint8 weights with input_scale, weight_scale"),
        (without("w4a16", "weight_scale"), "uint8 weights with weight_scale_2"),
        (
            {**without("fp8", "weight"), **linear("bf16")},
            "bfloat16 weights with input_scale, weight_scale",
        ),
        ({**linear("int4"), "a.pre_quant_scale": np.ones(256, np.float32)}, "AWQ smoothing"),
    ],
)
def test_tensors_of_no_known_format_are_named(holding, tensors, expected):
    with pytest.raises(CheckpointError, match=r"^a: has") as caught:
        format_of(holding(tensors), "a")
    assert expected in str(caught.value)


def layers(algorithm):
    return {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"a": {"quant_algo": algorithm}}}


@pytest.mark.parametrize(
    ("chosen", "said", "expected"),
    [
        ("nvfp4", layers("FP8"), "is fp8 by the quantization configuration, its tensors are nvfp4"),
        ("w4a16", layers("NVFP4"), "is nvfp4 by the"),
        ("bf16", layers("FP8"), "its tensors are bf16"),
        ("fp8", {"quantized_layers": {}}, "is bf16 by the"),
        ("fp8", layers("MXFP8"), "a: has the unknown quant_algo 'MXFP8'; known: FP8, NVFP4,"),
        ("nvfp4", {"quant_algo": "NVFP4_AWQ"}, "hf_quant_config.json: has the unknown quant_algo"),
    ],
)
def test_a_configuration_that_contradicts_is_named(holding, chosen, said, expected):
    with pytest.raises(CheckpointError) as caught:
        format_of(holding(linear(chosen), said), "a")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ("fp8", layers("FP8")),
        ("w4a16", layers("W4A16_NVFP4")),
        ("int4", layers("W4A16_AWQ")),
        ("bf16", layers(None)),
        ("bf16", {"quant_algo": "NVFP4", "exclude_modules": ["a"]}),
        ("nvfp4", {"quant_algo": "NVFP4"}),
        ("nvfp4", {"quant_algo": "MIXED_PRECISION"}),
        ("fp8", {}),
    ],
)
def test_a_configuration_that_agrees_is_accepted(holding, chosen, said):
    assert format_of(holding(linear(chosen), said), "a") == chosen


EXPERT = "language_model.backbone.layers.1.mixer.experts.3.up_proj"
NAMES_OF_AN_EXPERT = [
    EXPERT,
    "backbone.layers.1.mixer.experts.3.up_proj",
    "model.layers.1.mixer.experts.3.up_proj",
    "model.language_model.layers.1.mixer.experts.3.up_proj",
    "layers.1.mixer.experts.3.up_proj",
    "language_model.backbone.layers.1.mixer.experts",  # fused experts are one module
    "backbone.layers.1.mixer.experts.up_proj",
    "backbone.layers.1.mixer.experts.3",
    "backbone.layers.1.mixer.experts.*",
    "backbone.layers.1.mixer.experts.*.up_proj",
    "backbone.layers.1.mixer",
    "backbone.layers.1.mixer.experts.\0backbone.pt_name_sentinel",  # as ModelOpt 0.47 leaves it
]


def named(tensors, module):
    return {name.replace("a.", f"{module}.", 1): values for name, values in tensors.items()}


@pytest.mark.parametrize("name", NAMES_OF_AN_EXPERT)
def test_a_module_is_known_by_any_of_its_names(holding, name):
    others = {"backbone.layers.2.mixer.experts": {"quant_algo": "FP8"}, "lm_head": {}}
    said = {"quantized_layers": {**others, name: {"quant_algo": "NVFP4"}}}
    tensors = named(linear("nvfp4"), EXPERT) | named(linear("fp8"), EXPERT.replace("1", "2"))
    checkpoint = holding(tensors, said)
    assert format_of(checkpoint, EXPERT) == "nvfp4"
    assert format_of(checkpoint, EXPERT.replace("1", "2")) == "fp8"
    said["quantized_layers"][name] = {"quant_algo": "FP8"}
    with pytest.raises(CheckpointError, match="is fp8 by the quantization configuration"):
        format_of(holding(tensors, said), EXPERT)


def test_the_nearest_name_counts(holding):
    said = {
        "quantized_layers": {
            "backbone.layers.1.mixer": {"quant_algo": "FP8"},
            "backbone.layers.1.mixer.experts": {"quant_algo": "NVFP4"},
        }
    }
    assert format_of(holding(named(linear("nvfp4"), EXPERT), said), EXPERT) == "nvfp4"
    with pytest.raises(CheckpointError, match="is nvfp4 by"):
        format_of(holding(named(linear("fp8"), EXPERT), said), EXPERT)


@pytest.mark.parametrize("key", ["exclude_modules", "ignore"])
@pytest.mark.parametrize("name", [*NAMES_OF_AN_EXPERT, "*.up_proj", r"re:.*layers\.1\..*up_proj"])
def test_a_module_that_is_excluded_is_not_quantized(holding, key, name):
    said = {"quant_algo": "NVFP4", key: ["lm_head", name]}
    whole = named(linear("bf16"), EXPERT)
    assert format_of(holding(whole, said), EXPERT) == "bf16"
    with pytest.raises(CheckpointError, match="is bf16 by the quantization configuration"):
        format_of(holding(named(linear("nvfp4"), EXPERT), said), EXPERT)
    assert format_of(holding(whole, {"quant_algo": "NVFP4", key: ["lm_head"]}), EXPERT) == "bf16"


@pytest.mark.parametrize("at", ["config.json", "hf_quant_config.json"])
def test_both_files_must_agree_with_the_tensors(holding, at):
    right, wrong = ({"quant_algo": name, "ignore": []} for name in ("NVFP4", "FP8"))
    checkpoint = holding(linear("nvfp4"), right if at == "config.json" else wrong)
    config = checkpoint.folder / "config.json"
    told = {**right, "quant_method": "modelopt"} if at != "config.json" else wrong
    config.write_text(json.dumps({**checkpoint.config, "quantization_config": told}))
    with pytest.raises(CheckpointError, match=rf"is fp8 by .* \({at}"):
        format_of(Checkpoint(checkpoint.folder), "a")


@pytest.mark.parametrize("method", ["compressed-tensors", "fp8", "awq", "mxfp4"])
def test_other_tools_are_named(holding, method):
    with pytest.raises(CheckpointError, match=rf"is by quant_method '{method}', which is not read"):
        format_of(holding(linear("fp8"), {"quant_method": method}), "a")


@pytest.mark.parametrize("shape", [(4,), (4, 1), (2, 2)])
def test_an_fp8_scale_by_row_or_block_is_named(holding, shape):
    tensors = {**linear("fp8"), "a.weight_scale": np.ones(shape, np.float32)}
    with pytest.raises(CheckpointError, match=r"^a\.weight_scale: .*a scale for each row or block"):
        stored_layout(holding(tensors), "a.weight", SHAPE)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("dtype", ["f4", BF16])
def test_an_fp8_scale_is_one_number(holding, shape, dtype):
    tensors = {**linear("fp8"), "a.weight_scale": np.full(shape, 0.5, dtype)}
    scale = stored(holding(tensors), "a.weight", SHAPE, ".scale")
    assert (scale.dtype, scale.shape, float(scale)) == (np.float32, (), 0.5)


def parts_of(checkpoint):
    layout = stored_layout(checkpoint, "a.weight", SHAPE)
    return {f"a{end}": stored(checkpoint, "a.weight", SHAPE, end) for end in layout}


def test_block_scales_of_older_exports(holding):
    """Zeros are blocks of zeros; NaN over zeros is harmless, over others it is saturated."""
    tensors = linear("w4a16")
    codes, scales = tensors["a.weight"], tensors["a.weight_scale"].view(np.uint8)
    expected = DecoderWeights(parts_of(holding(tensors)))["a"].copy()
    scales[0, 0], scales[0, 1] = 0x00, 0x80
    expected[0, :32] = 0
    codes[1, :8], codes[1, 8:16] = 0x00, 0x88  # 0 and -0
    scales[1, 0], scales[1, 1] = 0x7F, 0xFF
    expected[1, :32] = 0
    for row, bits in ((2, 0x7F), (3, 0xFF)):
        before = float(tensors["a.weight_scale"][row, 5].astype(np.float32))
        expected[row, 80:96] *= 448 / before
        scales[row, 5] = bits
    checkpoint = holding(tensors)
    got = DecoderWeights(parts_of(checkpoint))["a"]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert checkpoint.saturated == {"a": 2}


@pytest.mark.parametrize("chosen", ["fp8", "w4a16"])
def test_a_matrix_of_zeros_whose_export_divided_by_zero(holding, chosen):
    tensors = linear(chosen)
    nan = np.uint8(0x7F)
    if chosen == "fp8":
        tensors["a.weight"].view(np.uint8)[:] = nan
        tensors["a.weight_scale"] = np.zeros((), np.float32)
    else:
        tensors["a.weight_scale"].view(np.uint8)[:] = nan
        tensors["a.weight_scale_2"] = np.zeros((), np.float32)
    checkpoint = holding(tensors)
    assert not DecoderWeights(parts_of(checkpoint))["a"].any()
    assert checkpoint.saturated == {}


def test_saturated_scales_are_counted_in_one_warning(tmp_path, caplog):
    source = tmp_path / "source"
    synthesize(source, TINY, "nvfp4", shard_bytes=300_000)
    checkpoint = Checkpoint(source)
    for expert, n in ((0, 3), (1, 1)):
        name = f"language_model.backbone.layers.1.mixer.experts.{expert}.up_proj.weight_scale"
        file = checkpoint._file_of(name)
        content = bytearray(file.path.read_bytes())
        content[file.offset(name) : file.offset(name) + n] = bytes([0x7F] * n)
        file.path.write_bytes(content)
    build_bundle(source, tmp_path / "out", "cpu", lambda *_: None)
    (record,) = caplog.records
    assert record.getMessage().startswith("4 block scales of 2 matrices are NaN over values")


@pytest.mark.parametrize(
    ("chosen", "tensor", "suffix", "value", "expected"),
    [
        ("fp8", "a.weight_scale", ".scale", -1.0, "holds -1.0, a scale must be zero or above"),
        ("fp8", "a.weight_scale", ".scale", np.nan, "holds a NaN"),
        ("fp8", "a.input_scale", ".input_scale", 0.0, "holds 0.0, a scale must be above zero"),
        ("fp8", "a.input_scale", ".input_scale", -1.0, "holds -1.0, a scale must"),
        ("fp8", "a.input_scale", ".input_scale", np.nan, "holds a NaN"),
        ("nvfp4", "a.weight_scale", ".block_scale", -1.0, "holds -1.0, a scale must"),
        ("nvfp4", "a.weight_scale_2", ".scale", -1.0, "holds -1.0, a scale must"),
        ("nvfp4", "a.weight_scale_2", ".scale", np.nan, "holds a NaN"),
        ("int4", "a.weight_scale", ".block_scale", -1.0, "holds -1.0, a scale must"),
        ("int4", "a.weight_scale", ".block_scale", np.nan, "holds a NaN"),
    ],
)
def test_a_scale_that_is_none_is_named(holding, chosen, tensor, suffix, value, expected):
    tensors = linear(chosen)
    scale = tensors[tensor].copy()
    scale.reshape(-1)[-1] = value
    checkpoint = holding({**tensors, tensor: scale})
    with pytest.raises(CheckpointError, match=f"^{tensor}: {expected}"):
        stored(checkpoint, "a.weight", SHAPE, suffix)


def dequantized(folder):
    """Every decoder tensor of a checkpoint in float32, by a plain formula."""
    checkpoint = Checkpoint(folder)

    def value(name):
        return checkpoint.tensor(name, checkpoint.shape(name))

    values = {}
    for name, _ in decoder_tensors(checkpoint.config["llm_config"]):
        module, weight = name.removesuffix(".weight"), value(name)
        if weight.dtype == np.uint8:
            pairs = np.stack([weight & 15, weight >> 4], -1).reshape(len(weight), -1)
            numbers = np.where(pairs & 8, -1, 1).astype(np.float32) * E2M1[pairs & 7]
            scale = value(f"{module}.weight_scale").astype(np.float32)
            blocks = scale * value(f"{module}.weight_scale_2")
            values[name] = numbers * np.repeat(blocks, 16, axis=1)
        elif weight.dtype == E4M3:
            values[name] = weight.astype(np.float32) * value(f"{module}.weight_scale")
        else:
            values[name] = weight.astype(np.float32)
    return values


def logits(folder, out):
    build_bundle(folder, out, "cpu", lambda *_: None)
    engine = CpuEngine(Bundle(out), n_threads=1, exact=True)
    return engine.prefill(engine.new_state(), engine.embed(np.arange(30, 50, dtype=np.int32)))


@pytest.mark.parametrize("layout", ["fp8", "nvfp4"])
def test_a_quantized_checkpoint_runs(tmp_path, layout):
    """As the same weights do in float32."""
    source, plain = tmp_path / "source", tmp_path / "plain"
    synthesize(source, TINY, layout, shard_bytes=300_000)
    checkpoint = Checkpoint(source)
    for name, _ in decoder_tensors(TINY["llm_config"]):
        if name.endswith("_proj.weight"):
            module = name.removesuffix(".weight")
            expected = (quantized_format(module, layout) or "bf16").lower()
            assert format_of(checkpoint, module) == expected

    values = dequantized(source)
    small = [path for path in source.iterdir() if path.suffix in (".json", ".jinja")]
    plain.mkdir()
    for path in small:
        if path.name not in ("hf_quant_config.json", "model.safetensors.index.json"):
            shutil.copyfile(path, plain / path.name)
    (plain / "config.json").write_text(json.dumps(TINY))
    rest = {n: checkpoint.tensor(n, checkpoint.shape(n)) for n in checkpoint.names()}
    rest = {n: v for n, v in rest.items() if not n.startswith("language_model.")}
    write_safetensors(plain / "model.safetensors", values | rest)

    got, expected = logits(source, tmp_path / "a"), logits(plain, tmp_path / "b")
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def quantize(source, out, recipe):
    assert main(["quantize", str(source), str(out), "--recipe", recipe, "--json"]) == 0
    return out


def test_our_own_checkpoint_runs(checkpoint, tmp_path, capsys):
    out = quantize(checkpoint("base"), tmp_path / "out", "w4a16")
    assert json.loads(capsys.readouterr().out)["linears"] == {"bf16": 1, "w4a16": 116}
    quantized = Checkpoint(out)
    recipe = load_recipe("w4a16")
    for name, _ in decoder_tensors(quantized.config["llm_config"]):
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and not name.endswith("norm.weight"):
            expected = recipe.format_of(module.removeprefix("language_model."))
            assert format_of(quantized, module) == expected
    got, plain = logits(out, tmp_path / "a"), logits(checkpoint("base"), tmp_path / "b")
    difference = np.abs(got - plain).max() / np.abs(plain).max()
    assert 0.001 < difference < 0.5  # other weights, the same model
    weights = SafetensorsFile(tmp_path / "a" / DECODER_WEIGHTS)
    assert weights.shape("layers.1.experts_up") == (16, 48, 32)
    assert weights.shape("layers.1.experts_up.scale") == (16,)


def test_q_k_and_v_share_a_scale(checkpoint, tmp_path):
    """Other runtimes compute them as one linear."""
    out = Checkpoint(quantize(checkpoint("base"), tmp_path / "out", "w4a16"))
    plain = Checkpoint(checkpoint("base"))
    scales, largest = {}, {}
    for kind in "qkvo":
        module = f"language_model.backbone.layers.3.mixer.{kind}_proj"
        scales[kind] = float(out.float32(f"{module}.weight_scale_2", ()))
        weight = plain.tensor(f"{module}.weight", plain.shape(f"{module}.weight"))
        largest[kind] = np.abs(weight).max() / np.float32(2688)
    shared = max(largest[kind] for kind in "qkv")
    assert scales == {"q": shared, "k": shared, "v": shared, "o": largest["o"]}


def test_nothing_quantized_is_the_source(checkpoint, tmp_path):
    source, out = checkpoint("wide"), quantize(checkpoint("wide"), tmp_path / "out", "bf16")
    assert "quantization_config" not in Checkpoint(out).config
    assert not (out / "hf_quant_config.json").exists()
    for folder, name in ((source, "a"), (out, "b")):
        build_bundle(folder, tmp_path / name, "cpu", lambda *_: None)
    files = sorted(p.name for p in (tmp_path / "a").iterdir() if p.name != "manifest.json")
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
