"""Random changes of a checkpoint's configuration end in a bundle or in one clear line."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import math
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_tiny_checkpoint import F32, PRESETS, checkpoint_config, make_checkpoint, write_weights

from build_engine import cli as build_cli
from build_engine import inventory
from edge.engines.bundle import Bundle
from edge.errors import CheckpointError
from edge.model import config_keys
from edge.model.spec import model_spec

VALUES = st.one_of(
    st.sampled_from([None, True, False, 0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 17, 32, 64, -1]),
    st.sampled_from([10**6, 10**9, 10**30, 0.5, 1e-5, 2.0, -0.1, math.nan, math.inf, -math.inf]),
    st.sampled_from(["", "relu", "silu", "relu2", "gelu", "v1", "MEM*EM*E", "EE", "M", "*", "-"]),
    st.sampled_from([[], [1], [0.1, 0.2], [0.5, 0.5, 0.5], {}, {"a": 1}, ["moe", "mlp"], "12"]),
)
SECTIONS = {"": config_keys.TOP, **config_keys.SECTIONS}
BASE = checkpoint_config(PRESETS["base"])
LARGEST = 300_000
"""Numbers in a tensor that the test is willing to write."""


def keys_of(section):
    table, values = SECTIONS[section], section_of(BASE, section)
    names = {*values, *table.fixed, *table.honoured.split()}
    return sorted(names | set(config_keys.RENAMED.get(section, {})))


def section_of(config, path):
    for key in filter(None, path.split(".")):
        config = config[key]
    return config


PLACES = sorted((section, key) for section in SECTIONS for key in keys_of(section))
CHANGES = st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=2)


def changed(changes):
    config = copy.deepcopy(BASE)
    if any(key in ("patch_size", "hidden_size") for (_, key), _ in changes):
        del config["vit_hidden_size"], config["patch_size"]
    if any(key == "hybrid_override_pattern" for (_, key), _ in changes):
        del config["llm_config"]["num_hidden_layers"]
    for (section, key), value in changes:
        try:
            section_of(config, section)[key] = copy.deepcopy(value)
        except (KeyError, TypeError):  # the section itself was changed
            config[key] = copy.deepcopy(value)
    return config


def weights_fit(config):
    """Whether the weights that the configuration means are few enough to be written here."""
    try:
        spec = model_spec(config, {"eos_token_id": 11})
    except CheckpointError:
        return False
    tensors = list(itertools.islice(inventory.tensors(spec), 1000))
    return len(tensors) < 1000 and max(math.prod(shape) for _, shape in tensors) <= LARGEST


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("any") / "base"
    make_checkpoint(folder, "base")
    return folder


SIZES = {
    "llm_config": {
        "hybrid_override_pattern": ["E", "M", "*", "ME*", "*EM", "MM*EE"],
        "hidden_size": [1, 2, 8, 20, 33, 64],
        "vocab_size": [64, 100, 512],
        "num_attention_heads": [1, 2, 3, 8],
        "num_key_value_heads": [1, 2, 3],
        "head_dim": [1, 4, 7, 16],
        "mamba_num_heads": [1, 3, 8],
        "mamba_head_dim": [1, 5, 16],
        "ssm_state_size": [1, 6, 32],
        "n_groups": [1, 2, 3, 4],
        "conv_kernel": [1, 2, 3, 16],
        "n_routed_experts": [1, 2, 6, 16],
        "num_experts_per_tok": [1, 2, 3, 6],
        "n_group": [1, 2, 3],
        "topk_group": [1, 2],
        "moe_intermediate_size": [1, 7, 48],
        "moe_shared_expert_intermediate_size": [1, 9, 96],
        "max_position_embeddings": [1, 8, 4096],
        "num_nextn_predict_layers": [0, 1],
        "use_conv_bias": [False],
    },
    "vision_config": {
        "hidden_size": [1, 4, 12, 64],
        "num_hidden_layers": [1, 3],
        "num_attention_heads": [1, 2, 4],
        "intermediate_size": [1, 30],
        "patch_size": [1, 2, 14, 16],
        "video_target_num_patches": [4, 5, 64],
        "video_temporal_patch_size": [1, 2, 3],
    },
    "sound_config": {
        "hidden_size": [2, 6, 64],
        "num_hidden_layers": [1, 3],
        "num_attention_heads": [1, 2, 3],
        "intermediate_size": [1, 11],
        "conv_kernel_size": [1, 3, 31],
        "subsampling_conv_channels": [1, 3, 16],
        "num_mel_bins": [8, 80, 128],
        "projection_hidden_size": [1, 5, 96],
        "scale_input": [False, True],
        "convolution_bias": [False, True],
        "attention_bias": [False, True],
        "projection_bias": [False, True],
    },
    "": {"projector_hidden_size": [1, 3, 160], "patch_size": [1, 2, 14, 16]},
}
RESIZED = st.lists(
    st.sampled_from(
        [((s, key), v) for s, keys in SIZES.items() for key, vs in keys.items() for v in vs]
    ),
    min_size=1,
    max_size=6,
)


@given(changes=st.one_of(CHANGES, RESIZED))
@settings(max_examples=25)
def test_a_changed_configuration_is_built_or_named(base, changes):
    folder = base.parent / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(base.parent / "out", ignore_errors=True)
    shutil.copytree(base, folder)
    config = changed(changes)
    (folder / "config.json").write_text(json.dumps(config))
    if weights_fit(config):
        published = config_keys.published_names(config)
        write_weights(folder, published, F32, 1, 0)
    out, said = base.parent / "out", io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = build_cli.main(["bundle", str(folder), str(out), "--target", "cpu", "--json"])
    lines = said.getvalue().splitlines()
    if code == 0:
        assert Bundle(out).manifest.files
    else:
        assert code == 65 or "self-check" in lines[-1]
        (line,) = lines
        assert line.startswith("build-engine: ")
        assert line.count("; ") >= 1
    assert sorted(p.name for p in base.parent.iterdir() if p.name.startswith(".")) == []
