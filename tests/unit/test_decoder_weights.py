"""The decoder's weights: which tensors there are, where each is from, and in which order."""

from __future__ import annotations

import json
import math
import os
import shutil

import ml_dtypes
import numpy as np
import pytest
from make_tiny_checkpoint import decoder_tensors
from published_config import CONFIG

from build_engine.checkpoint import INDEX, Checkpoint
from build_engine.checkpoint_weights import CheckpointWeights
from build_engine.decoder_layout import bundle_layout, recipe_layout
from build_engine.decoder_weights import linears, packed_tensors, write_decoder
from build_engine.recipe import load_recipe
from edge.engines.bundle import DECODER_WEIGHTS
from edge.engines.safetensors import SafetensorsFile, write_safetensors
from edge.errors import CheckpointError
from edge.model.spec import model_spec

PUBLISHED = model_spec(CONFIG, {}).decoder
FLOATS = ("float32", "bfloat16")


def test_every_published_tensor_of_the_decoder_has_one_place():
    published = dict(decoder_tensors(CONFIG["llm_config"]))
    placed = {}
    for packed in packed_tensors(PUBLISHED):
        for source in packed.sources:
            assert source not in placed
            placed[source] = packed.source_shape
        stack = (len(packed.sources),) if len(packed.sources) > 1 else ()
        assert math.prod(packed.shape) == math.prod(stack + packed.source_shape)
    assert placed == published


def test_what_a_recipe_may_quantize_are_the_matrices_but_for_table_and_router():
    expected = [
        name.removeprefix("language_model.").removesuffix(".weight")
        for name, shape in decoder_tensors(CONFIG["llm_config"])
        if len(shape) == 2 and not name.endswith(("embeddings.weight", ".gate.weight"))
    ]
    assert sorted(linears(PUBLISHED)) == sorted(expected)


def test_tensors_come_in_the_order_in_which_a_token_meets_them(checkpoint):
    spec = Checkpoint(checkpoint("base")).spec.decoder
    names = [packed.name for packed in packed_tensors(spec)]
    assert names[0] == "embeddings"
    assert names[-2:] == ["norm", "head"]
    blocks = {
        "M": "norm in_proj conv_weight conv_bias dt_bias A_log D gated_norm out_proj",
        "*": "norm q_proj k_proj v_proj o_proj",
        "E": "norm gate gate_bias experts_up experts_down shared_up shared_down",
    }
    expected = [
        f"layers.{i}.{name}" for i, kind in enumerate(spec.pattern) for name in blocks[kind].split()
    ]
    assert names[1:-2] == expected


@pytest.fixture
def source(checkpoint):
    return Checkpoint(checkpoint("wide"))  # bfloat16, in three shards


def test_matrices_keep_their_type_and_all_else_becomes_float32(source, tmp_path):
    told = []
    write_decoder(source, tmp_path / DECODER_WEIGHTS, lambda *step: told.append(step))
    file = SafetensorsFile(tmp_path / DECODER_WEIGHTS)
    packed = list(packed_tensors(source.spec.decoder))
    assert told == [("decoder", n, len(packed)) for n in range(len(packed) + 1)]
    assert sorted(file.names()) == sorted(one.name for one in packed)
    for one in packed:
        values = [source.tensor(name, one.source_shape) for name in one.sources]
        expected = np.stack(values) if len(values) > 1 else values[0].reshape(one.shape)
        got = file.tensor(one.name)
        assert got.dtype == (expected.dtype if one.matrix else np.float32)
        assert got.shape == one.shape
        assert (got.astype(np.float32) == expected.astype(np.float32)).all()
    assert file.tensor("layers.0.norm").dtype == np.float32
    assert file.tensor("head").dtype == ml_dtypes.bfloat16
    assert bundle_layout(tmp_path) == recipe_layout(source.spec.decoder, load_recipe("bf16"))


def test_the_written_file_leaves_the_page_cache(source, tmp_path, monkeypatch):
    """Who maps it next gets large pages: it is on the disk, all of it, before it is let go."""
    calls = []
    path = tmp_path / "decoder"
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("synced") or real(fd))
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *rest: calls.append(rest))
    write_decoder(source, path, lambda *_: None)
    assert calls[-2:] == ["synced", (0, 0, os.POSIX_FADV_DONTNEED)]


def test_weights_are_read_under_the_decoders_names(source):
    weights, spec = CheckpointWeights(source), source.spec.decoder
    by_name = {packed.name: packed for packed in packed_tensors(spec)}
    conv = by_name[f"layers.{spec.layers('M')[0]}.conv_weight"]
    assert weights[conv.name].shape == (spec.conv_dim, spec.conv_kernel)
    raw = source.tensor(conv.sources[0], conv.source_shape)
    assert (weights[conv.name] == raw.reshape(conv.shape).astype("f4")).all()
    layer = spec.layers("E")[0]
    up = by_name[f"layers.{layer}.experts_up"]
    for expert in (0, spec.n_experts - 1):
        values = weights.expert(up.name, expert)
        assert values.dtype == np.float32
        assert (values == source.float32(up.sources[expert], up.source_shape)).all()


ROOT = "language_model.backbone"


@pytest.fixture
def own(checkpoint, tmp_path):
    """A checkpoint of one shard to change, and what it holds."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint("base"), folder)
    file = SafetensorsFile(folder / "model.safetensors")
    return folder, {name: file.tensor(name).copy() for name in file.names()}


def test_a_tensor_is_looked_up_by_the_index_where_there_is_one(own):
    folder, tensors = own
    names = sorted(tensors)
    parts = {"a.safetensors": names[:10], "b.safetensors": names[10:]}
    for shard, held in parts.items():
        write_safetensors(folder / shard, {name: tensors[name] for name in held})
    index = {name: shard for shard, held in parts.items() for name in held}
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    (folder / "model.safetensors").unlink()
    opened = Checkpoint(folder)
    assert sorted(opened.names()) == names
    for name in (names[0], names[-1]):
        assert opened.has(name)
        assert (opened.dtype(name), opened.shape(name), opened.n_bytes(name)) == (
            tensors[name].dtype, tensors[name].shape, tensors[name].nbytes
        )  # fmt: skip
    assert not opened.has("another")
    files = opened.files()
    assert list(files) == ["a.safetensors", "b.safetensors"]
    about = (folder / "a.safetensors").stat()
    assert files["a.safetensors"] == (about.st_size, about.st_mtime_ns, about.st_ino)
    index["another"] = "a.safetensors"
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    with pytest.raises(CheckpointError, match=f"^another: is missing from {folder}; download"):
        Checkpoint(folder).dtype("another")
    (folder / INDEX).write_text("{}")
    with pytest.raises(CheckpointError, match=rf"{INDEX}: has no weight_map; download"):
        Checkpoint(folder)


def test_a_number_of_one_element_is_one_of_none_and_else_shapes_are_the_configurations(own):
    folder, _ = own
    write_safetensors(
        folder / "model.safetensors",
        {"one": np.float32([2]), "none": np.float32(3), "row": np.zeros((1, 4), "f4")},
    )
    opened = Checkpoint(folder)
    assert opened.tensor("one", ()).shape == ()
    assert opened.float32("none", ()) == 3
    with pytest.raises(
        CheckpointError, match=r"row: has shape \(1, 4\), but config.json means \(4,"
    ):
        opened.check("row", (4,))
    with pytest.raises(
        CheckpointError, match=r"none: has shape \(\), but config.json means \(1,\)"
    ):
        opened.check("none", (1,))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("at", [0, 7, 8, 19])
def test_a_value_that_is_no_number_is_found_wherever_it_is(own, monkeypatch, dtype, at):
    """It is looked for in pieces, here of 8."""
    monkeypatch.setattr("build_engine.checkpoint.CHECKED_AT_ONCE", 8)
    folder, _ = own
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    bad = [np.nan, -np.nan] + ([] if dtype == "float8_e4m3fn" else [np.inf, -np.inf])
    for value in (448, *bad):
        values = np.full((4, 5), -448, np.float32).astype(kind)
        values.reshape(-1)[at] = value
        write_safetensors(folder / "model.safetensors", {"x": values})
        opened = Checkpoint(folder)
        if value == 448:
            assert (opened.finite("x", (4, 5)) == values).all()
            continue
        with pytest.raises(CheckpointError, match=r"^x: holds a NaN or an infinity; download"):
            opened.finite("x", (4, 5))
        assert "x" not in opened.read


def test_integers_are_all_numbers(own):
    folder, _ = own
    values = np.full((3,), 0x7F, np.uint8)
    write_safetensors(folder / "model.safetensors", {"x": values})
    assert Checkpoint(folder).finite("x", (3,)).tolist() == [0x7F] * 3


def test_the_identity_is_of_names_types_shapes_and_bytes(own, monkeypatch):
    folder, _ = own

    def identity(**changed):
        write_safetensors(folder / "model.safetensors", changed)
        opened = Checkpoint(folder)
        for name, values in changed.items():
            opened.finite(name, values.shape)
            opened.finite(name, values.shape)  # a second reading changes nothing
        return opened.sha256()

    x = np.arange(6, dtype=np.float32)
    found = [
        identity(x=x),
        identity(x=x + 1),
        identity(y=x),
        identity(x=x.reshape(2, 3)),
        identity(x=x.view(np.int32)),
        identity(x=x, y=x),
    ]
    assert len(set(found)) == len(found)
    monkeypatch.setattr("build_engine.checkpoint.CHECKED_AT_ONCE", 4)
    assert identity(x=x) == found[0]
    assert identity(y=x, x=x) == found[5]  # whatever was read first
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "a_note": 1}, indent=4))
    assert identity(x=x) != found[0]
    (folder / "config.json").write_text(json.dumps(dict(sorted(config.items())), indent=4))
    assert identity(x=x) == found[0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "is missing; download the checkpoint again, complete"),
        ("{", "is not JSON (Expecting"),
        ("[1]", "is not a JSON object; download the checkpoint again"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_configuration_file_that_cannot_be_read_is_named(own, name, text, problem):
    path = own[0] / name
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(own[0])
    assert str(caught.value).startswith(f"{path}: {problem}")


def test_a_file_is_no_checkpoint(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(CheckpointError, match="x: is not a directory; give a checkpoint's folder"):
        Checkpoint(tmp_path / "x")
