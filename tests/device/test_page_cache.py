"""What is hashed and uploaded leaves the page cache: on a board it is the GPU's memory."""

from __future__ import annotations

import contextlib
import mmap
from pathlib import Path

import numpy as np
import pytest
from fake_cuda import FakeDriver
from fake_tensorrt import FakeTensorRT
from page_cache import drop, n_cached

from build_engine import plans
from edge.engines.bundle import Bundle
from edge.engines.cuda import Cuda
from edge.engines.hashing import PART_BYTES, file_entry
from edge.engines.plan import Plan
from edge.engines.plan_memory import Memory, load_weights
from edge.engines.safetensors import SafetensorsFile, write_safetensors
from edge.errors import ConfigurationError


def on_disk(path: Path) -> None:
    """Write a file out, and see that this filesystem can do without its pages."""
    if drop(path):
        pytest.skip("this filesystem is in memory")


@pytest.mark.parametrize("part_bytes", [PART_BYTES, 1 << 20])
def test_a_hashed_file_leaves_if_it_is_told_to(tmp_path, monkeypatch, part_bytes):
    """Neither of one part nor of several, though the kernel reads ahead behind the end of each."""
    monkeypatch.setattr("edge.engines.hashing.PART_BYTES", part_bytes)
    path = tmp_path / "file"
    path.write_bytes(bytes(9_000_000))
    on_disk(path)
    kept = file_entry(path)
    assert n_cached(path) == -(-9_000_000 // mmap.PAGESIZE)
    assert file_entry(path, give_back=True) == kept
    assert n_cached(path) == 0


def test_a_mapped_file_leaves_and_stays_right(tmp_path):
    path = tmp_path / "weights"
    tensors = {name: np.arange(100_000, dtype=np.float32) for name in ("a", "b")}
    write_safetensors(path, tensors)
    on_disk(path)
    file = SafetensorsFile(path)
    views = {name: file.tensor(name) for name in tensors}
    assert all(view.sum() for view in views.values())
    file.release()
    assert n_cached(path)
    file.give_back()
    assert n_cached(path) == 0
    for name, view in views.items():
        np.testing.assert_array_equal(view, tensors[name])


def test_nothing_that_the_gpu_has_stays_in_the_cache(compiled):
    """Neither behind hashing, nor behind the plans' and the weights' way to the GPU."""
    folder, driver = compiled("wide"), FakeDriver()
    names = ("decoder.safetensors", "prefill.plan")
    for name in names:
        on_disk(folder / name)
    bundle = Bundle(folder)
    assert [n_cached(folder / name) for name in names] == [0, 0]
    with contextlib.ExitStack() as stack:
        cuda, trt = Cuda(driver), FakeTensorRT(driver)
        memory = Memory(cuda, stack)
        plan = Plan(trt, trt.Runtime(None), folder / names[1])
        weights = set(SafetensorsFile(folder / names[0]).names()) - {"embeddings"}
        wanted = [plan.bindings[name] for name in weights]
        assert set(load_weights(wanted, bundle, memory, cuda, memory.stream())) == weights
        assert [n_cached(folder / name) for name in names] == [0, 0]


def test_nothing_of_a_bundle_stays_while_its_first_plans_are_made(bundle, monkeypatch):
    """TensorRT measures kernels then, and takes what memory it finds."""
    path = bundle("wide")
    monkeypatch.setattr(plans, "COMPILER", "json")
    monkeypatch.setattr(plans, "check_tensorrt", lambda version: None)
    monkeypatch.setattr(plans, "local_compute_capability", lambda: (8, 7))
    n_left: list[int] = []

    def looked(path):
        n_left.append(n_cached(path / "decoder.safetensors"))
        raise ConfigurationError("this test", "has seen enough", "end")

    monkeypatch.setattr(plans, "bundle_layout", looked)  # what comes after the hashes
    on_disk(path / "decoder.safetensors")
    with pytest.raises(ConfigurationError, match="has seen enough"):
        plans.compile_bundle(path, "orin", plans.Options(512), lambda *_: None)
    assert n_left == [0]


def test_a_bundle_without_plans_stays_for_the_engine_that_maps_it(bundle):
    path = bundle("wide")
    on_disk(path / "decoder.safetensors")
    Bundle(path)
    assert n_cached(path / "decoder.safetensors")
