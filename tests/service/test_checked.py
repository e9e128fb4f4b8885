"""Bytes that were checked are not read again; bytes that may have changed are."""

from __future__ import annotations

import os
import shutil
import time

import pytest

from edge.engines import checked
from edge.engines.bundle import DECODER_WEIGHTS, MANIFEST, Bundle
from edge.engines.checked import SETTLED_NS, STAMP, Checking
from edge.engines.hashing import Hashing
from edge.errors import BundleError


def later_ns() -> int:
    """The wall clock, when files of now have settled."""
    return time.time_ns() + 2 * SETTLED_NS


def open_bundle(path, folder, now_ns=later_ns) -> Bundle:
    with Checking(path, folder, now_ns) as checking:
        return checking.open()


@pytest.fixture
def copied(bundle, tmp_path):
    return shutil.copytree(bundle("base"), tmp_path / "bundle")


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files that are hashed, as they are."""
    names: list[str] = []
    real = Hashing._hash

    def noted(self, path, *where):
        names.append(path.name)
        return real(self, path, *where)

    monkeypatch.setattr(Hashing, "_hash", noted)
    return names


def test_the_second_start_hashes_nothing(copied, tmp_path, hashed):
    first = open_bundle(copied, tmp_path)
    assert sorted(hashed) == sorted(first.manifest.files)
    hashed.clear()
    assert open_bundle(copied, tmp_path).manifest == first.manifest
    assert hashed == []


def test_without_a_folder_it_is_always_checked(copied, hashed):
    for _ in range(2):
        hashed.clear()
        assert sorted(open_bundle(copied, None).manifest.files) == sorted(hashed)


def test_a_changed_byte_is_found_though_size_and_time_are_put_back(copied, tmp_path):
    open_bundle(copied, tmp_path)
    weights = copied / DECODER_WEIGHTS
    before = weights.stat()
    with weights.open("r+b") as file:
        file.seek(before.st_size // 2)
        old = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([old[0] ^ 1]))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(BundleError, match="is damaged"):
        open_bundle(copied, tmp_path)
    with pytest.raises(BundleError, match="is damaged"):  # nor is the refusal remembered as good
        open_bundle(copied, tmp_path)


@pytest.mark.parametrize("change", ["replaced", "manifest", "boot"])
def test_what_may_have_changed_is_checked_again(copied, tmp_path, hashed, monkeypatch, change):
    open_bundle(copied, tmp_path)
    hashed.clear()
    if change == "replaced":
        shutil.copy2(copied / DECODER_WEIGHTS, tmp_path / "new")
        (tmp_path / "new").replace(copied / DECODER_WEIGHTS)
    elif change == "manifest":
        (copied / MANIFEST).write_bytes((copied / MANIFEST).read_bytes() + b" ")
    else:
        (tmp_path / "boot_id").write_text("another\n")
        monkeypatch.setattr(checked, "BOOT_ID", tmp_path / "boot_id")
    open_bundle(copied, tmp_path)
    assert DECODER_WEIGHTS in hashed


def test_a_file_that_just_changed_is_not_trusted(copied, tmp_path):
    open_bundle(copied, tmp_path, time.time_ns)
    assert not (tmp_path / STAMP).exists()


def test_no_place_to_remember_is_no_reason_to_stop(copied, tmp_path, caplog):
    open_bundle(copied, tmp_path / "nowhere")
    assert "event=not_remembered" in caplog.text
