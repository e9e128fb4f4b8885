"""One linear in a checkpoint's layout: names, dtypes, shapes, and the scales of activations."""

from __future__ import annotations

import fnmatch

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from build_engine.checkpoint import Checkpoint
from build_engine.decoder_weights import ROOT, packed_tensors
from build_engine.pack import BITS, activation_scales, joint_scale, kv_scales, pack_linear
from build_engine.quantization_config import prefix_patterns, quantization_configuration
from edge.engines.formats import Fp8, Int4, Nvfp4, unpack_fp8, unpack_int4, unpack_nvfp4
from edge.errors import CheckpointError

BF16 = np.dtype(ml_dtypes.bfloat16)
LAYOUTS = {
    "bf16": {"weight": ("bfloat16", (32, 256))},
    "fp8": {"weight": ("float8_e4m3fn", (32, 256)), "weight_scale": ("float32", ())},
    "nvfp4": {
        "weight": ("uint8", (32, 128)),
        "weight_scale": ("float8_e4m3fn", (32, 16)),
        "weight_scale_2": ("float32", ()),
    },
    "int4": {"weight": ("uint8", (16, 256)), "weight_scale": ("float32", (32, 2))},
}
LAYOUTS["w4a16"] = LAYOUTS["nvfp4"]
ERRORS = {"bf16": 0.0, "fp8": 2**-4, "nvfp4": 1 / 6, "w4a16": 1 / 6, "int4": 1 / 14}
"""Half a step at the top of each format's range, relative to the largest magnitude."""


def weight(dtype=BF16):
    return np.random.default_rng(0).standard_normal((32, 256)).astype(dtype)


@pytest.mark.parametrize("dtype", [BF16, np.dtype(np.float32)])
@pytest.mark.parametrize("chosen", LAYOUTS)
def test_names_dtypes_and_shapes(chosen, dtype):
    tensors = pack_linear("a.b", weight(dtype), chosen)
    found = {n.removeprefix("a.b."): (v.dtype.name, v.shape) for n, v in tensors.items()}
    expected = dict(LAYOUTS[chosen])
    if chosen == "bf16":
        expected["weight"] = (dtype.name, (32, 256))
    assert found == expected
    n_bits = 8 * sum(values.nbytes for values in tensors.values() if values.ndim)
    assert n_bits / weight().size == BITS[chosen] * (2 if (chosen, dtype) == ("bf16", "f4") else 1)


def unpacked(tensors, chosen):
    code, *scales = tensors.values()
    if chosen == "bf16":
        return code.astype(np.float32)
    if chosen == "fp8":
        return unpack_fp8(Fp8(code, scales[0]))
    return (
        unpack_int4(Int4(code, *scales)) if chosen == "int4" else unpack_nvfp4(Nvfp4(code, *scales))
    )


@pytest.mark.parametrize("chosen", LAYOUTS)
def test_what_is_packed_reads_back(chosen):
    values = weight().astype(np.float32)
    error = np.abs(unpacked(pack_linear("a", weight(), chosen), chosen) - values).max()
    assert error <= 1.0001 * ERRORS[chosen] * np.abs(values).max()


def test_linears_that_are_computed_together_share_a_scale():
    small, large = weight() * BF16.type(0.25), weight()
    scale = joint_scale([small, large])
    assert scale == float(np.abs(large.astype(np.float32)).max() / np.float32(2688))
    packed = [pack_linear("a", w, "nvfp4", scale) for w in (small, large)]
    assert [p["a.weight_scale_2"] for p in packed] == [np.float32(scale)] * 2
    for values, tensors in zip((small, large), packed, strict=True):
        values = values.astype(np.float32)
        assert np.abs(unpacked(tensors, "nvfp4") - values).max() <= np.abs(values).max() / 6
    assert joint_scale([0 * small]) is None
    assert joint_scale([]) is None


@pytest.fixture(scope="module")
def spec(checkpoint):
    """Layers M E M * E M * E, 16 experts."""
    return Checkpoint(checkpoint("base")).spec.decoder


def modules(spec, layer):
    """The linears of a block, by the names of the bundle that hold them."""
    return {
        packed.name: [source.removesuffix(".weight") for source in packed.sources]
        for packed in packed_tensors(spec)
        if packed.matrix and packed.name.startswith(f"layers.{layer}.")
    }


def test_experts_take_the_largest_of_their_layer(spec):
    """Also those that no sample reached: here all but 2, 5 and 11."""
    by_name = modules(spec, 1)
    chosen = {m: "nvfp4" if ".experts." in m else "fp8" for ms in by_name.values() for m in ms}
    largest = {"layers.1.shared_up": 4.0, "layers.1.shared_down": 1.5, "layers.1.gate": 4.0}
    largest |= {f"layers.1.experts_up.{e}": float(e) for e in (2, 5, 11)}
    largest |= {f"layers.1.experts_down.{e}": 1.0 / e for e in (2, 5, 11)}
    scales = activation_scales(spec, 1, chosen, largest)
    expected = {f"{m}.input_scale": np.float32(11) / 2688 for m in by_name["layers.1.experts_up"]}
    expected |= {
        f"{m}.input_scale": np.float32(0.5) / 2688 for m in by_name["layers.1.experts_down"]
    }
    mixer = f"{ROOT}.layers.1.mixer.shared_experts"
    expected[f"{mixer}.up_proj.input_scale"] = np.float32(4) / 448
    expected[f"{mixer}.down_proj.input_scale"] = np.float32(1.5) / 448
    assert len(expected) == 34
    assert scales == expected
    assert {(s.dtype, s.shape) for s in scales.values()} == {(np.dtype(np.float32), ())}


def test_weight_only_linears_have_no_input_scale(spec):
    by_name = modules(spec, 3)
    formats = {"q": "fp8", "k": "w4a16", "v": "int4", "o": "bf16"}
    chosen = {by_name[f"layers.3.{kind}_proj"][0]: name for kind, name in formats.items()}
    largest = {f"layers.3.{kind}_proj": 448.0 for kind in "qkvo"}
    scales = activation_scales(spec, 3, chosen, largest)
    assert scales == {f"{ROOT}.layers.3.mixer.q_proj.input_scale": 1}


@pytest.mark.parametrize("seen", [{}, {"layers.0.in_proj": 1.0, "layers.0.out_proj": 0.0}])
def test_a_linear_that_nothing_reached_is_named(spec, seen):
    chosen = {m: "fp8" for ms in modules(spec, 0).values() for m in ms}
    with pytest.raises(CheckpointError, match=r"layers\.0\.mixer\.\w+_proj: was reached by zeros"):
        activation_scales(spec, 0, chosen, seen)


def test_keys_and_values_have_scales(spec):
    largest = {"layers.3.k_proj.output": 44.8, "layers.3.v_proj.output": 896.0}
    mixer = f"{ROOT}.layers.3.mixer"
    scales = kv_scales(spec, 3, largest)
    assert scales == {
        f"{mixer}.k_proj.k_scale": np.float32(44.8) / 448,
        f"{mixer}.v_proj.v_scale": 2,
    }
    assert {(s.dtype, s.shape) for s in scales.values()} == {(np.dtype(np.float32), ())}
    assert kv_scales(spec, 0, largest) == kv_scales(spec, 1, largest) == {}


names = st.lists(st.sampled_from(["a", "ab", "b", "0", "1"]), min_size=1, max_size=4).map(".".join)


@given(st.sets(names, max_size=8), st.sets(names, max_size=8))
def test_patterns_match_what_they_should_and_nothing_else(kept, quantized):
    kept -= quantized
    patterns = prefix_patterns(sorted(kept), quantized)
    for module in kept:
        assert any(fnmatch.fnmatchcase(module, pattern) for pattern in patterns)
    for module in quantized:
        assert not any(fnmatch.fnmatchcase(module, pattern) for pattern in patterns)


def test_what_is_said_of_one_format_and_of_several():
    one, _ = quantization_configuration({"l.a": "fp8", "l.b": "bf16"}, ["v.x", "l.c"], "fp8")
    assert one["quantization"] == {
        "quant_algo": "FP8",
        "kv_cache_quant_algo": "FP8",
        "exclude_modules": ["l.b", "l.c", "v*"],
    }
    several, embedded = quantization_configuration(
        {"l.a": "fp8", "l.b": "nvfp4", "l.c": "bf16"}, ["v.x"], "bf16"
    )
    layers = {"l.a": {"quant_algo": "FP8"}, "l.b": {"quant_algo": "NVFP4", "group_size": 16}}
    assert several["quantization"] == {
        "quant_algo": "MIXED_PRECISION",
        "kv_cache_quant_algo": None,
        "quantized_layers": layers,
    }
    assert embedded["quantized_layers"] == layers
    targets = [group["targets"] for group in embedded["config_groups"].values()]
    assert targets == [["l.a"], ["l.b"]]


FP8 = {"dynamic": False, "num_bits": 8, "type": "float"}
FP4 = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
SAID = {
    "fp8": ({"quant_algo": "FP8"}, {"input_activations": FP8, "weights": FP8}),
    "nvfp4": (
        {"quant_algo": "NVFP4", "group_size": 16}, {"input_activations": FP4, "weights": FP4}
    ),
    "w4a16": ({"quant_algo": "W4A16_NVFP4", "group_size": 16}, {"weights": FP4}),
    "int4": (
        {
            "quant_algo": "W4A16_AWQ", "group_size": 128, "has_zero_point": False,
            "pre_quant_scale": True,
        },
        {"weights": {"dynamic": False, "num_bits": 4, "type": "int", "group_size": 128}},
    ),
}  # fmt: skip
"""By format what ModelOpt 0.47.0 writes of a linear, and of a group of them in config.json."""


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("kv_cache", ["bf16", "fp8"])
def test_all_that_is_said_of_one_format(name, kv_cache):
    linear, group = SAID[name]
    told, embedded = quantization_configuration({"a.x": name, "b.x": "bf16"}, ["c.y"], kv_cache)
    assert told["producer"] == {"name": "modelopt", "version": "0.47.0"}
    assert told["quantization"] == {
        "kv_cache_quant_algo": "FP8" if kv_cache == "fp8" else None,
        **linear,
        "exclude_modules": ["b*", "c*"],
    }
    assert embedded == {
        "quant_method": "modelopt", "producer": told["producer"], "ignore": ["b*", "c*"],
        "quant_algo": linear["quant_algo"],
        "config_groups": {"group_0": {**group, "targets": ["Linear"]}},
        **({"kv_cache_scheme": FP8} if kv_cache == "fp8" else {}),
    }  # fmt: skip


def test_all_that_is_said_of_several_formats():
    chosen = {"b": "int4", "a": "int4", "c": "bf16", "d": "fp8"}
    told, embedded = quantization_configuration(chosen, ["e"], "bf16")
    layers = {"b": SAID["int4"][0], "a": SAID["int4"][0], "d": SAID["fp8"][0]}
    assert told["quantization"] == {
        "quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None, "quantized_layers": layers
    }  # fmt: skip
    assert embedded == {
        "quant_method": "modelopt", "producer": told["producer"], "ignore": [],
        "quant_algo": "MIXED_PRECISION", "quantized_layers": layers,
        "config_groups": {
            "group_0": {**SAID["int4"][1], "targets": ["a", "b"]},
            "group_1": {**SAID["fp8"][1], "targets": ["d"]},
        },
    }  # fmt: skip


def test_all_that_is_said_of_a_cache_alone():
    told, embedded = quantization_configuration({"a": "bf16"}, [], "fp8")
    assert told["quantization"] == {
        "quant_algo": None, "kv_cache_quant_algo": "FP8", "quantized_layers": {}
    }  # fmt: skip
    assert embedded == {
        "quant_method": "modelopt", "producer": told["producer"], "ignore": [],
        "kv_cache_scheme": FP8,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kept", "quantized", "patterns"),
    [
        (["a.x", "a.y"], ["b.x"], ["a*"]),
        (["a.x", "a.y"], ["ab.x"], ["a.*"]),
        (["a.x.p", "a.x.q"], ["a.y"], ["a.x*"]),
        (["a.x.p"], ["a.x.q"], ["a.x.p"]),
        (["head"], ["header"], ["head"]),
        (["a.b.c"], ["a"], ["a.b*"]),
        (["a.b"], [], ["a*"]),
        (["b", "a"], [], ["a", "b"]),
    ],
)
def test_patterns_are_the_shortest(kept, quantized, patterns):
    assert prefix_patterns(kept, quantized) == patterns
