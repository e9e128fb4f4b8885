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


@given(changes=CHANGES)
@settings(max_examples=120)
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
        assert code == 65
        (line,) = lines
        assert line.startswith("build-engine: ")
        assert line.count("; ") >= 1
    assert sorted(p.name for p in base.parent.iterdir() if p.name.startswith(".")) == []
