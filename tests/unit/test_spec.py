"""What the configuration files of a checkpoint mean, whoever wrote them."""

from __future__ import annotations

import copy
import math

import pytest
from published_config import CONFIG, GENERATION_CONFIG

from edge.errors import CheckpointError
from edge.model.config_keys import judge_config, published_names
from edge.model.spec import SamplingSpec, model_spec

SPEC = model_spec(CONFIG, GENERATION_CONFIG)


def changed(section, **values):
    config = copy.deepcopy(CONFIG)
    (config[section] if section else config).update(values)
    return config


def test_every_published_key_is_known():
    verdicts = {found.name: found.verdict for found in judge_config(CONFIG)}
    assert len(verdicts) > 100
    assert set(verdicts.values()) == {"honoured", "fixed", "neutral"}


def test_transformers_names_mean_the_same():
    config = copy.deepcopy(CONFIG)
    llm = config.pop("llm_config")
    layers = {"M": "linear_attention", "E": "moe", "*": "full_attention"}
    llm["layers_block_type"] = [layers[c] for c in llm.pop("hybrid_override_pattern")]
    llm["num_local_experts"] = llm.pop("n_routed_experts")
    llm["mamba_d_conv"] = llm.pop("conv_kernel")
    llm["time_step_limit"] = [0.0, {"__float__": "Infinity"}]
    config |= {"text_config": llm, "audio_config": config.pop("sound_config")}
    config["image_token_id"] = config.pop("img_context_token_id")
    assert model_spec(config, GENERATION_CONFIG) == SPEC
    llm["conv_kernel"] = None
    assert model_spec(config, GENERATION_CONFIG) == SPEC
    llm["conv_kernel"] = 3
    with pytest.raises(CheckpointError, match=r"llm_config\.mamba_d_conv: is 4, but conv_kernel"):
        published_names(config)


def test_an_unknown_block_is_refused():
    config = changed("llm_config", layer_types=["moe", "mlp", "what"])
    del config["llm_config"]["hybrid_override_pattern"]
    with pytest.raises(CheckpointError, match="has a dense MLP, '-', at position 1"):
        model_spec(config, {})


@pytest.mark.parametrize(("values", "n_kv_heads"), [({}, 8), ({"num_key_value_heads": None}, 32)])
def test_heads_of_keys_that_are_not_told(values, n_kv_heads):
    """transformers' default, and what null meant before it."""
    config = changed("llm_config")
    del config["llm_config"]["num_key_value_heads"], config["llm_config"]["head_dim"]
    config["llm_config"].update(values)
    decoder = model_spec(config, GENERATION_CONFIG).decoder
    assert (decoder.n_kv_heads, decoder.head_dim) == (n_kv_heads, 128)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({}, SamplingSpec((11,), 1.0, 1.0)),
        ({"eos_token_id": [2, 11], "temperature": 0.6}, SamplingSpec((2, 11), 0.6, 1.0)),
        ({"temperature": None, "top_p": None, "top_k": None}, SamplingSpec((11,), 1.0, 1.0)),
        ({"top_k": 20, "top_p": 0.9, "do_sample": True}, SamplingSpec((11,), 1.0, 0.9, 20)),
        ({"do_sample": False, "temperature": 0.6}, SamplingSpec((11,), 0.0, 1.0)),
        ({"repetition_penalty": 1, "min_p": 0, "bad_words_ids": []}, SamplingSpec((11,), 1.0, 1.0)),
    ],
)
def test_what_is_drawn_by_default(generation, expected):
    assert model_spec(CONFIG, generation).sampling == expected


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({"temperature": "0,6"}, "temperature: is '0,6', which is not a finite number"),
        ({"temperature": math.nan}, "temperature: is nan, which is not a finite number"),
        ({"temperature": -1}, "temperature: is -1, outside 0..2"),
        ({"top_p": 1.5}, "top_p: is 1.5, outside 0..1"),
        ({"top_k": -1}, "top_k: is -1, below 0"),
        ({"eos_token_id": []}, "eos_token_id: is [], which is not a token id or a list of them"),
        ({"eos_token_id": "end"}, "eos_token_id: is 'end', which is not a token id"),
        ({"do_sample": "yes"}, "do_sample: is 'yes', which is not true or false"),
        ({"num_beams": 4}, "num_beams: is 4, only 1 is served"),
    ],
)
def test_what_cannot_be_drawn_is_named(generation, expected):
    with pytest.raises(CheckpointError) as caught:
        model_spec(CONFIG, generation)
    assert f"generation_config.json.{expected}" in str(caught.value)


def test_processors_tell_what_the_configuration_leaves_out():
    config = changed("vision_config")
    for values in (config["vision_config"], config["vision_config"]["args"]):
        del values["min_num_patches"], values["max_num_patches"]
    del config["norm_mean"]
    assert model_spec(config, {}).vision == SPEC.vision
    told = {"a.json": {"min_num_patches": 4, "max_num_patches": 8, "image_mean": [0, 0.5, 1]}}
    vision = model_spec(config, {}, told).vision
    assert (vision.min_patches, vision.max_patches) == (4, 8)
    assert vision.norm_mean == (0.0, 0.5, 1.0)
    with pytest.raises(CheckpointError, match=r"b\.json\.min_num_patches: is 5, but a\.json"):
        model_spec(config, {}, {**told, "b.json": {"min_num_patches": 5}})
