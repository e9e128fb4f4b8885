"""A bundle: what was built, its self-description, and the refusal of anything that disagrees.

A bundle is a folder: manifest.json, tokenizer.json, chat_template.jinja, the decoder's weights
(decoder.safetensors, mapped, never copied), the encoders, and selfcheck.npz.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.engines.safetensors import SafetensorsFile
from edge.errors import BundleError
from edge.model.spec import ModelSpec

FORMAT = 2
MANIFEST = "manifest.json"
DECODER_WEIGHTS = "decoder.safetensors"
SELF_CHECK = "selfcheck.npz"
REBUILD = "build it again with `build-engine bundle`"
HASH_BLOCK_BYTES = 1 << 22


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file of the bundle must be."""

    n_bytes: int
    sha256: str


class Plans(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the plans beside the manifest were compiled with, and for."""

    tensorrt: str
    """Version; another one refuses the plans."""
    compute_capability: str
    """Of the GPU, e.g. 8.7."""
    max_past_rows: int
    """Rows of the K/V cache that decode.plan and prefill.plan can be given."""
    scratch_bytes: dict[str, dict[str, int]] = {}
    """Of memory that a plan needs while it computes, by its file and by profile; the engine keeps
    what the largest first one takes, for all."""
    verified: str | None = None
    """The GPU on which `build-engine verify` found the plans right."""
    warnings: dict[str, tuple[str, ...]] = {}
    """Of each graph, what TensorRT said while it compiled and what does not change its meaning."""

    @property
    def kept_scratch_bytes(self) -> int | None:
        """What the engine keeps for all of them; None where an older builder wrote nothing down."""
        return max((next(iter(p.values())) for p in self.scratch_bytes.values()), default=None)


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The bundle's description of itself."""

    format: int
    name: str
    """The model's name, as clients see it."""
    target: str
    """What executes it: cpu, which every bundle is for, or the target of its plans."""
    recipe: str
    """How the decoder's weights are quantized, in ModelOpt's words."""
    spec: ModelSpec
    checkpoint_sha256: str
    """Identity of the checkpoint that it was built from."""
    builder_version: str
    files: dict[str, FileEntry]
    plans: Plans | None = None


class _FormatOnly(msgspec.Struct):
    """The one field that every format has."""

    format: int


def file_entry(path: Path, *, give_back: bool = False) -> FileEntry:
    """Measure a file.

    Args:
        give_back: leave nothing of it in the page cache.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
            if give_back:
                os.posix_fadvise(file.fileno(), 0, file.tell(), os.POSIX_FADV_DONTNEED)
    return FileEntry(path.stat().st_size, digest.hexdigest())


class OneBlock(Mapping[str, NDArray[Any]]):
    """A mapped file's tensors, of which one block's stay in memory at a time."""

    def __init__(self, weights: Mapping[str, NDArray[Any]], file: SafetensorsFile) -> None:
        """Take views of `file`, named `layers.<block>.<weight>` or otherwise."""
        self._weights, self._file, self._block = weights, file, ""

    def __getitem__(self, name: str) -> NDArray[Any]:
        block = ".".join(name.split(".")[:2])
        if block != self._block:
            self._file.release()
            self._block = block
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class Bundle:
    """An opened, verified bundle."""

    def __init__(
        self, path: Path, *, check_hashes: bool = True, release_cache: bool = False
    ) -> None:
        """Open the folder `path` and check every byte of it against the manifest.

        Args:
            check_hashes: False looks at the files' sizes only, for who has just checked it.
            release_cache: leave nothing of what was hashed in the page cache, as is done with every
                bundle that has plans: for who needs the memory for a GPU.
        Raises:
            BundleError: it is absent, incomplete, changed, or of a newer format.
        """
        self.path, self._check_hashes = path, check_hashes
        self.manifest = _read_manifest(path)
        # a GPU's engine copies: what the cache holds besides is memory that its copy lacks
        self._release_cache = release_cache or self.manifest.plans is not None
        names = list(self.manifest.files)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for problem in pool.map(self._problem, names):
                if problem:
                    raise BundleError(*problem)

    def _problem(self, name: str) -> tuple[Path, str, str] | None:
        path, expected = self.path / name, self.manifest.files[name]
        if not path.is_file():
            return path, "is missing", REBUILD
        n_bytes = path.stat().st_size
        if n_bytes != expected.n_bytes:
            return path, f"has {n_bytes} bytes, the manifest says {expected.n_bytes}", REBUILD
        if not self._check_hashes:
            return None
        sha256 = file_entry(path, give_back=self._release_cache).sha256
        if sha256 != expected.sha256:
            return (
                path,
                f"is damaged: sha256 {sha256[:12]}… is not the manifest's {expected.sha256[:12]}…",
                f"copy the bundle again, or {REBUILD}",
            )
        return None

    def decoder_weights(self, one_block: bool = False) -> Mapping[str, NDArray[Any]]:
        """The decoder's weights by name, as views of the mapped file.

        Args:
            one_block: keep no block in memory when another is asked for: a bundle larger than the
                memory can be checked.
        """
        file = SafetensorsFile(self.path / DECODER_WEIGHTS)
        weights = {name: file.tensor(name) for name in file.names()}
        return OneBlock(weights, file) if one_block else weights

    def self_check(self) -> Mapping[str, NDArray[Any]]:
        """Inputs, and what the cpu engine made of them when the bundle was built."""
        with np.load(self.path / SELF_CHECK, allow_pickle=False) as stored:
            return dict(stored)


def _read_manifest(path: Path) -> Manifest:
    manifest_path = path / MANIFEST
    try:
        text = manifest_path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            path, f"is not a bundle: it has no {MANIFEST}", "make one with `build-engine bundle`"
        ) from None
    try:
        written = msgspec.json.decode(text, type=_FormatOnly).format
        if written != FORMAT:
            raise BundleError(
                manifest_path,
                f"is of format {written}, this runtime reads format {FORMAT}",
                "update omni-edge" if written > FORMAT else REBUILD,
            )
        manifest = msgspec.json.decode(text, type=Manifest)
    except msgspec.DecodeError as error:
        raise BundleError(manifest_path, f"cannot be read ({error})", REBUILD) from None
    for name in manifest.files:
        if Path(name).name != name:
            raise BundleError(manifest_path, f"names {name!r}, outside the bundle", REBUILD)
    return manifest
