"""A file's parts are hashed side by side, and what they are of is told apart."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import msgspec
import pytest

from edge.engines.hashing import FileEntry, Hashing, file_entry

PART_BYTES = 1 << 16
CONTENT = bytes(range(251)) * 1000
"""Three parts and the rest of a fourth, no two of them alike."""


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr("edge.engines.hashing.PART_BYTES", PART_BYTES)
    (tmp_path / "file").write_bytes(CONTENT)
    return tmp_path / "file"


def test_a_large_file_is_the_digest_of_its_parts_digests(path):
    parts = [CONTENT[at : at + PART_BYTES] for at in range(0, len(CONTENT), PART_BYTES)]
    digests = b"".join(hashlib.sha256(part).digest() for part in parts)
    expected = FileEntry(len(CONTENT), hashlib.sha256(digests).hexdigest(), PART_BYTES)
    assert file_entry(path) == expected


@pytest.mark.parametrize("n_bytes", [0, 1, PART_BYTES])
def test_a_small_file_has_the_digest_that_everybody_knows(path, n_bytes):
    path.write_bytes(CONTENT[:n_bytes])
    expected = FileEntry(n_bytes, hashlib.sha256(CONTENT[:n_bytes]).hexdigest())
    assert file_entry(path) == expected
    assert b"part_bytes" not in msgspec.json.encode(expected), "older runtimes read it, too"


def test_a_manifest_names_no_other_size_of_parts():
    """Parts of one byte would be as many digests as there are bytes."""
    with pytest.raises(msgspec.ValidationError, match="part_bytes"):
        msgspec.json.decode(b'{"n_bytes": 9, "sha256": "", "part_bytes": 1}', type=FileEntry)


def test_who_does_not_want_it_any_more_does_not_wait(path):
    with path.open("r+b") as file:
        file.truncate(1 << 33)
    with Hashing() as hashing:
        hashing.begin(path.parent, {path.name: FileEntry(1 << 33, "")})
    assert hashing.hashed().n_bytes < 1 << 33


def test_it_begins_before_the_packages_that_take_their_time():
    program = "import sys, edge.engines.checked; print({'numpy', 'aiohttp'} & {*sys.modules})"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    assert said == b"set()\n"
