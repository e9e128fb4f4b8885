"""Checkpoints that ModelOpt's own export_hf_checkpoint wrote, and ours byte by byte against them.

ModelOpt quantizes, calibrates and exports transformers' decoder as it is: its fused experts come
out one by one under the published names, below the `language_model.` that only the omni model has.
"""

from __future__ import annotations

import copy
import fnmatch
import json
import shutil

import ml_dtypes
import numpy as np
import pytest

from build_engine.bundle import build_bundle
from build_engine.checkpoint import Checkpoint
from build_engine.quantization_config import quantization_configuration
from build_engine.quantize import Job, quantize
from build_engine.recipe import known_recipes, load_recipe
from build_engine.stored import ALGORITHMS, format_of
from edge.engines.bundle import Bundle
from edge.engines.cpu import CpuEngine
from edge.engines.safetensors import write_safetensors
from edge.errors import ConfigurationError

# What ModelOpt's exporter says of its own code.
pytestmark = pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")
FORMATS = ["fp8", "nvfp4", "w4a16"]
RECIPES = ["fp8", "nvfp4", "nvfp4-all", "w4a16"]
RELATIVE_TOLERANCE = 2e-4
"""Of logits, as between all engines. Measured: 7e-7."""
DECODER = "language_model."


@pytest.fixture(scope="module")
def source(models, checkpoint):
    """M E M * E M * E, float32."""
    return Checkpoint(checkpoint("base"))


@pytest.fixture(scope="module")
def decoder(models, source):
    """transformers' decoder of that checkpoint."""
    from oracle.reference import load

    return load(source.folder).model.language_model


@pytest.fixture(scope="module")
def samples(source):
    rng = np.random.default_rng(11)
    hidden = source.spec.decoder.hidden_size
    return [rng.standard_normal((n, hidden)).astype(np.float32) for n in (4, 31, 12)]


def linears(source):
    """Modules of the blocks that a recipe may quantize."""
    return [
        name.removesuffix(".weight")
        for name in source.names()
        if name.startswith(DECODER) and name.endswith("_proj.weight")
    ]


def chosen_by(recipe, source):
    return {m: recipe.format_of(m.removeprefix(DECODER)) for m in linears(source)}


def write_omni(folder, source, tensors, **config):
    """A whole checkpoint: this decoder, all else from the source."""
    folder.mkdir()
    for path in source.folder.iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)
    (folder / "config.json").write_text(json.dumps({**source.config, **config}))
    rest = {n: source.tensor(n, source.shape(n)) for n in source.names()}
    rest = {n: values for n, values in rest.items() if not n.startswith(DECODER)}
    write_safetensors(folder / "model.safetensors", rest | tensors)


def dequantized(tensors):
    """The values that the exported tensors stand for, by ModelOpt's own code for NVFP4."""
    import torch
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    values = {}
    for name, weight in tensors.items():
        module, _, kind = name.rpartition(".")
        if kind in ("weight_scale", "weight_scale_2", "input_scale"):
            continue
        if weight.dtype == np.uint8:
            scale = tensors[f"{module}.weight_scale"].view(np.uint8).copy()
            shape = torch.Size((len(weight), 2 * weight.shape[1]))
            packed = NVFP4QTensor(shape, torch.float32, torch.from_numpy(weight.copy()))
            values[name] = packed.dequantize(
                torch.float32,
                scale=torch.from_numpy(scale).view(torch.float8_e4m3fn),
                double_scale=torch.tensor(tensors[f"{module}.weight_scale_2"]),
                block_sizes={-1: 16},
            ).numpy()
        elif weight.dtype == ml_dtypes.float8_e4m3fn:
            values[name] = weight.astype(np.float32) * tensors[f"{module}.weight_scale"]
        else:
            values[name] = weight
    return values


@pytest.mark.parametrize("name", FORMATS)
def test_a_checkpoint_by_modelopt_runs(models, source, decoder, samples, tmp_path, name):
    """The preset of the format, ModelOpt's calibration, ModelOpt's export: the same logits."""
    import modelopt.torch.quantization as mtq
    from oracle.reference import load

    presets = {"fp8": "FP8_DEFAULT_CFG", "nvfp4": "NVFP4_DEFAULT_CFG", "w4a16": "W4A16_NVFP4_CFG"}
    preset = copy.deepcopy(getattr(mtq, presets[name]))
    whole = models.quantized(decoder, preset["quant_cfg"], samples)
    tensors = models.exported(whole, tmp_path / "export")
    said = json.loads((tmp_path / "export" / "config.json").read_text())["quantization_config"]
    write_omni(tmp_path / "quantized", source, tensors, quantization_config=said)
    write_omni(tmp_path / "plain", source, dequantized(tensors))

    checkpoint = Checkpoint(tmp_path / "quantized")
    assert {format_of(checkpoint, module) for module in linears(source)} == {name}
    for kept in ("lm_head", "backbone.embeddings"):
        assert format_of(checkpoint, f"{DECODER}{kept}") == "bf16"
    build_bundle(tmp_path / "quantized", tmp_path / "bundle", "cpu", lambda *_: None)
    engine = CpuEngine(Bundle(tmp_path / "bundle"), n_threads=1, exact=True)
    rows = engine.embed(np.arange(20, 60, dtype=np.int32))
    got = engine.prefill(engine.new_state(), rows)
    _, expected = load(tmp_path / "plain").hidden_states(rows)
    difference = float(np.abs(got - expected[-1]).max() / np.abs(expected[-1]).max())
    assert difference <= RELATIVE_TOLERANCE
    unquantized = load(source.folder).hidden_states(rows)[1][-1]
    assert np.abs(got - unquantized).max() / np.abs(unquantized).max() > 10 * RELATIVE_TOLERANCE


def as_published(module):
    """The published NVFP4 files: experts in NVFP4, q, k and v as they were, all else in FP8."""
    if ".experts." in module:
        return "nvfp4"
    return "bf16" if module.endswith(("q_proj", "k_proj", "v_proj")) else "fp8"


@pytest.mark.filterwarnings("ignore:.*amax entries of this .* are zero:UserWarning")
@pytest.mark.parametrize("experts", ["fused", "separate"])
@pytest.mark.parametrize("chosen", [as_published, lambda module: "nvfp4"], ids=["mixed", "nvfp4"])
def test_an_export_is_taken_with_its_own_words(
    models, source, decoder, samples, tmp_path, chosen, experts
):
    """With what ModelOpt says of it: names, parents, its markers; with blocks of zeros."""
    from oracle.reference import load

    decoder = copy.deepcopy(decoder)
    formats = {module: chosen(module) for module in linears(source)}
    ups = decoder.model.layers[1].mixer.experts.up_proj.data
    ups[2, :5] = 0
    if experts == "separate":
        ups[2] = 0  # ModelOpt divides by zero; of fused experts it refuses such a one
        decoder = models.with_separate_experts(decoder)
        rules = models.separate_configuration(formats)
    else:
        rules = models.quantizer_configuration(formats, "fp8")
    theirs = models.exported(models.quantized(decoder, rules, samples), tmp_path / "export")
    said = json.loads((tmp_path / "export" / "config.json").read_text())["quantization_config"]
    for told_in in (("config.json",), ("hf_quant_config.json",), ("both", "hf_quant_config.json")):
        folder = tmp_path / told_in[0]
        in_config = {} if told_in == ("hf_quant_config.json",) else {"quantization_config": said}
        write_omni(folder, source, theirs, **in_config)
        if told_in[-1] == "hf_quant_config.json":
            shutil.copyfile(tmp_path / "export" / told_in[-1], folder / told_in[-1])
        checkpoint = Checkpoint(folder)
        assert len(checkpoint.told) == len(told_in)
        assert {module: format_of(checkpoint, module) for module in formats} == formats
    build_bundle(tmp_path / "both", tmp_path / "bundle", "cpu", lambda *_: None)
    values = {n: np.nan_to_num(v) for n, v in dequantized(theirs).items()}
    values = {n: v for n, v in values.items() if not n.endswith(("k_scale", "v_scale"))}
    write_omni(tmp_path / "plain", source, values)
    engine = CpuEngine(Bundle(tmp_path / "bundle"), n_threads=1, exact=True)
    rows = engine.embed(np.arange(20, 60, dtype=np.int32))
    got = engine.prefill(engine.new_state(), rows)
    expected = load(tmp_path / "plain").hidden_states(rows)[1][-1]
    difference = float(np.abs(got - expected).max() / np.abs(expected).max())
    assert difference <= RELATIVE_TOLERANCE


def set_input_amax(models, model, checkpoint, samples):
    """Give ModelOpt's quantizers of activations exactly what our calibration found."""
    import torch

    from build_engine.calibrate import calibrate_block

    largest = {}
    for layer in range(len(checkpoint.spec.decoder.pattern)):
        samples, found = calibrate_block(checkpoint, layer, samples)
        largest |= found
    for name, quantizer in models.input_quantizers(model):
        amax = max(v for n, v in largest.items() if n == name or n.startswith(f"{name}."))
        del quantizer._amax  # of the model's dtype, which it would keep
        quantizer.amax = torch.tensor(amax)


@pytest.mark.parametrize("preset", ["base", "grouped"])
@pytest.mark.parametrize("name", RECIPES)
def test_ours_are_the_bytes_of_modelopts_export(
    models, checkpoint, samples, tmp_path, name, preset
):
    """The whole decoder of a float32 and of a bfloat16 checkpoint: names, dtypes, shapes, bytes."""
    import torch
    from oracle.reference import load

    source, recipe = Checkpoint(checkpoint(preset)), load_recipe(name)
    dtype = torch.bfloat16 if preset == "grouped" else torch.float32
    decoder = load(source.folder).model.language_model.to(dtype)
    quantize(Job(source, recipe, samples, tmp_path / "ours"), lambda *_: None)
    ours, chosen = Checkpoint(tmp_path / "ours"), chosen_by(recipe, source)
    rules = models.quantizer_configuration(chosen, recipe.kv_cache)
    whole = models.quantized(decoder, rules, samples)
    set_input_amax(models, whole, source, samples)
    theirs = models.exported(whole, tmp_path / "export")
    found = {n: ours.tensor(n, ours.shape(n)) for n in ours.names() if n.startswith(DECODER)}
    assert set(found) == set(theirs)
    for tensor, values in theirs.items():
        got = found[tensor]
        if tensor.rpartition(".")[0] not in chosen and preset == "grouped":
            got = got.astype(values.dtype)  # the correction is float32 in the published files
        assert (got.dtype, got.shape) == (values.dtype, values.shape), tensor
        assert got.tobytes() == values.tobytes(), tensor
    for encoder in set(ours.names()) - set(found):
        values = source.tensor(encoder, source.shape(encoder))
        assert ours.tensor(encoder, values.shape).tobytes() == values.tobytes()
    agree(tmp_path / "export", ours, chosen)


def agree(export, ours, chosen):
    """What both say of the quantization."""
    theirs = json.loads((export / "hf_quant_config.json").read_text())["quantization"]
    said = ours.json("hf_quant_config.json")["quantization"]
    for key in ("quant_algo", "kv_cache_quant_algo", "group_size"):
        assert said.get(key) == theirs.get(key)
    algorithms = {name: algorithm for algorithm, name in ALGORITHMS.items()}
    if "quantized_layers" in theirs:
        layers = {m: algorithms[f] for m, f in chosen.items() if f != "bf16"}
        assert {m: layer["quant_algo"] for m, layer in said["quantized_layers"].items()} == layers
        for module, layer in theirs["quantized_layers"].items():  # fused experts are one module
            module = f"{DECODER}{module.partition(SENTINEL)[0]}"
            same = {layers[m] for m in layers if m == module or m.startswith(f"{module}.")}
            assert same == {layer["quant_algo"]}
    else:
        kept = [f"{DECODER}{m.partition(SENTINEL)[0]}" for m in theirs["exclude_modules"]]
        assert len(kept) == 8
        patterns = said["exclude_modules"]
        assert [m for m in kept if not any(fnmatch.fnmatchcase(m, p) for p in patterns)] == []
        assert [m for m in chosen if any(fnmatch.fnmatchcase(m, p) for p in patterns)] == []


SENTINEL = ".\0"
"""ModelOpt 0.47.0 with transformers 5.23.0 leaves a marker behind names that it turns back."""


@pytest.mark.parametrize("name", known_recipes())
def test_what_we_say_is_what_modelopt_says(models, source, name):
    """Word for word, for every recipe and for all modules of the whole model."""
    import modelopt
    from modelopt.torch.export.convert_hf_config import convert_hf_quant_config_format
    from modelopt.torch.export.quant_utils import process_layer_quant_config

    recipe = load_recipe(name)
    chosen = chosen_by(recipe, source)
    others = [
        n.removesuffix(".weight")
        for n in source.names()
        if n.endswith(".weight") and len(source.shape(n)) > 1
        if n.removesuffix(".weight") not in chosen
    ]
    called = {"fp8": "fp8", "nvfp4": "nvfp4", "w4a16": "w4a16_nvfp4", "int4": "int4_awq"}
    blocks = {"nvfp4": 16, "w4a16": 16, "int4": 128}
    layers = {}
    for module, chosen_format in {**chosen, **dict.fromkeys(others, "bf16")}.items():
        layers[f"{module}.quantization"] = called.get(chosen_format)
        layers[f"{module}.awq_block_size"] = blocks.get(chosen_format, 0)
    theirs = {
        "producer": {"name": "modelopt", "version": modelopt.__version__},
        "quantization": {
            "quant_algo": None,
            "kv_cache_quant_algo": None,
            **process_layer_quant_config(layers),
        },
    }
    theirs["quantization"]["kv_cache_quant_algo"] = "FP8" if recipe.kv_cache == "fp8" else None
    said, embedded = quantization_configuration(chosen, others, recipe.kv_cache)
    assert said == theirs
    if name == "bf16":
        return  # nothing is embedded where nothing is quantized
    assert embedded == convert_hf_quant_config_format(theirs)


def test_an_interrupted_calibration_goes_on(models, source, samples, tmp_path):
    """The samples as they reach a block are kept: the bytes are those of one run."""
    recipe, out = load_recipe("nvfp4"), tmp_path / "out"
    for stop_after in (1, 2, 5, 8, 9):
        done = []

        def progress(*_, done=done, stop_after=stop_after):
            done.append(None)
            if len(done) == stop_after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            quantize(Job(source, recipe, samples, out), progress)
    with pytest.raises(ConfigurationError, match="holds another, interrupted run"):
        quantize(Job(source, recipe, samples[:2], out), lambda *_: None)
    quantize(Job(source, recipe, samples, out), lambda *_: None)
    quantize(Job(source, recipe, samples, tmp_path / "whole"), lambda *_: None)
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files
    assert not [name for name in files if name.startswith("samples")]
