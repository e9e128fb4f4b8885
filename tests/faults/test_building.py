"""What a builder tells while it works, what it leaves, and what one that ends early does not."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil

import pytest

import edge
from build_engine import building as building_module
from build_engine import bundle as bundle_module
from build_engine.building import building, kept, work_folder
from build_engine.bundle import build_bundle
from build_engine.checkpoint import Checkpoint
from build_engine.decoder_weights import packed_tensors
from build_engine.verify import Verification
from edge.engines.bundle import FORMAT, MANIFEST, Bundle
from edge.errors import BundleError, ConfigurationError


@pytest.fixture
def source(checkpoint, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint("base"), folder)
    return folder


def test_progress_is_told_stage_by_stage_to_the_end_of_each(source, tmp_path):
    told = []
    manifest = build_bundle(source, tmp_path / "out", "cpu", lambda *step: told.append(step))
    stages = list(dict.fromkeys(stage for stage, *_ in told))
    assert stages == ["decoder", "vision", "audio", "verify"]
    n_tensors = len({name for stage, name, _ in told if stage == "decoder"}) - 1
    assert [step[1:] for step in told if step[0] == "decoder"] == [
        (done, n_tensors) for done in range(n_tensors + 1)
    ]
    assert n_tensors == len(list(packed_tensors(manifest.spec.decoder)))
    for stage in stages[1:]:
        assert [step[1:] for step in told if step[0] == stage] == [(0, 1), (1, 1)]


def test_a_manifest_says_what_was_built_of_what(source, tmp_path):
    manifest = build_bundle(source, tmp_path / "out", "cpu", lambda *_: None)
    assert manifest == Bundle(tmp_path / "out").manifest
    assert (manifest.format, manifest.name, manifest.target) == (FORMAT, "checkpoint", "cpu")
    assert (manifest.recipe, manifest.plans) == ("unquantized", None)
    assert manifest.builder_version == edge.__version__
    assert manifest.spec == Checkpoint(source).spec
    assert set(manifest.files) == {
        "tokenizer.json", "chat_template.jinja", "decoder.safetensors", "vision.onnx",
        "vision.onnx.data", "audio.onnx", "audio.onnx.data", "selfcheck.npz",
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*manifest.files, MANIFEST}
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def test_what_a_killed_builder_left_is_none_of_the_next_ones(source, tmp_path):
    folder = work_folder(tmp_path / "out")
    folder.mkdir()
    (folder / "old.bin").write_bytes(b"old")
    (folder / MANIFEST).write_text("{}")
    manifest = build_bundle(source, tmp_path / "out", "cpu", lambda *_: None)
    assert "old.bin" not in manifest.files
    assert not (tmp_path / "out" / "old.bin").exists()


@pytest.mark.parametrize("ends_with", [KeyboardInterrupt, OSError])
def test_a_builder_that_ends_early_leaves_nothing(source, tmp_path, ends_with):
    def progress(stage, done, total):
        if stage == "audio":
            raise ends_with

    with pytest.raises(ends_with):
        build_bundle(source, tmp_path / "out", "cpu", progress)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_bundle_whose_self_check_fails_is_not_named(source, tmp_path, monkeypatch):
    def wrong(*arguments):
        return dataclasses.replace(verified(*arguments), outputs=())

    def refuse(self, path):
        raise BundleError(path, "is wrong", "build it again")

    verified = bundle_module.verify
    monkeypatch.setattr(bundle_module, "verify", wrong)
    monkeypatch.setattr(Verification, "require", refuse)
    with pytest.raises(BundleError, match="is wrong"):
        build_bundle(source, tmp_path / "out", "cpu", lambda *_: None)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_who_builds_is_told_as_far_as_the_kernel_says(tmp_path, monkeypatch):
    inode = tmp_path.stat().st_ino
    locks = tmp_path / "locks"
    monkeypatch.setattr(building_module, "LOCKS", locks)
    assert building_module._holder(inode) == "another process"
    locks.write_text(
        f"1: POSIX  ADVISORY  WRITE 11 08:01:{inode} 0 EOF\n"
        f"2: FLOCK  ADVISORY  WRITE 12 08:01:{inode}9 0 EOF\n"
        f"3: FLOCK  ADVISORY  WRITE 13 08:01:{inode} 0 EOF\n"
        f"4: FLOCK  ADVISORY  WRITE 14 08:01:{inode} 0 EOF\n"
    )
    assert building_module._holder(inode) == "process 13"
    assert building_module._holder(inode + 1) == "another process"


def test_a_folder_is_had_by_one_at_a_time_and_given_back(tmp_path):
    out = tmp_path / "deep" / "out"
    with building(out) as folder:
        assert folder == tmp_path / "deep" / ".out.partial"
        assert folder.is_dir()
        problem = r"is being built by .*; wait for it, or name"
        with pytest.raises(ConfigurationError, match=problem), building(out):
            pass
    n_open = len(os.listdir("/proc/self/fd"))
    with building(out):
        pass
    assert len(os.listdir("/proc/self/fd")) == n_open
    out.mkdir()
    problem = "out: exists already; remove it or name another"
    with pytest.raises(ConfigurationError, match=problem), building(out):
        pass
    assert len(os.listdir("/proc/self/fd")) == n_open


def test_who_reads_a_bundle_waits_for_who_changes_it(tmp_path):
    """Many may read it at once; whoever says nothing changes it."""

    def refused(**how):
        try:
            with kept(tmp_path, **how):
                return ""
        except ConfigurationError as error:
            return str(error)

    busy = r".* is being compiled or verified by .*; wait for it, or stop it"
    with kept(tmp_path):
        assert re.fullmatch(busy, refused(changes=False))
        assert re.fullmatch(busy, refused())
    with kept(tmp_path, changes=False):
        assert not refused(changes=False)
        assert re.fullmatch(busy, refused())
    assert not refused()
    with kept(tmp_path / "none"):  # whoever reads it says what is wrong with it
        assert not (tmp_path / "none").exists()
