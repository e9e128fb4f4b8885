"""A checkpoint that exists only while it is read is the one that is written whole."""

from __future__ import annotations

import pytest
from build_full_size import SEED, SparseCheckpoint
from make_tiny_checkpoint import PRESETS, checkpoint_config
from synthesize_checkpoint import synthesize

from build_engine.checkpoint import Checkpoint
from build_engine.quantize import Job, quantize
from build_engine.recipe import load_recipe

TINY = checkpoint_config(PRESETS["grouped"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    synthesize(folder, TINY, "bf16", SEED)
    return Checkpoint(folder)


def disk_bytes(checkpoint):
    return sum(512 * path.stat().st_blocks for path in checkpoint.folder.glob("*.safetensors"))


def test_what_is_read_is_what_would_be_written(whole, tmp_path):
    sparse = SparseCheckpoint(tmp_path / "sparse", TINY)
    assert sparse.names() == whole.names()
    at_first = disk_bytes(sparse)
    for name in whole.names():
        shape = whole.shape(name)
        assert sparse.tensor(name, shape).tobytes() == whole.tensor(name, shape).tobytes()
    assert disk_bytes(sparse) > at_first
    sparse.release()
    assert disk_bytes(sparse) == at_first
    name = whole.names()[0]  # again, after it was let go
    shape = whole.shape(name)
    assert sparse.tensor(name, shape).tobytes() == whole.tensor(name, shape).tobytes()


def test_both_give_the_same_quantized_checkpoint(whole, tmp_path):
    recipe = load_recipe("w4a16")
    quantize(Job(whole, recipe, (), tmp_path / "a"), lambda *_: None)
    sparse = SparseCheckpoint(tmp_path / "sparse", TINY)
    quantize(Job(sparse, recipe, (), tmp_path / "b"), lambda *_: None)
    for path in sorted((tmp_path / "a").glob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
