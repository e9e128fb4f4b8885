"""A bundle: what was built, its self-description, and the refusal of anything that disagrees.

A bundle is a folder: manifest.json, tokenizer.json, chat_template.jinja, the decoder's weights
(decoder.safetensors, mapped, never copied), the encoders, and selfcheck.npz; plans, where it was
compiled for a GPU. These files and no others are read, none of them through a symbolic link. What
else lies in the folder is told and left alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from edge.engines import signature
from edge.engines.hashing import MANIFEST as MANIFEST
from edge.engines.hashing import FileEntry, Hashing
from edge.engines.layout import difference
from edge.engines.onnx_files import check_external_data
from edge.engines.safetensors import SafetensorsFile
from edge.engines.stored_check import check_arrays, read_arrays
from edge.errors import BundleError, CheckpointError
from edge.files import open_regular, read_bounded
from edge.model.prompt import ChatTemplate
from edge.model.spec import ModelSpec, contradiction
from edge.model.tokenizer import TEMPLATE, Tokenizer

log = logging.getLogger(__name__)

FORMAT = 2
DECODER_WEIGHTS = "decoder.safetensors"
SELF_CHECK = "selfcheck.npz"
TOKENIZER = "tokenizer.json"
ENCODERS = ("vision.onnx", "audio.onnx")
FILES = frozenset(
    (TOKENIZER, TEMPLATE, DECODER_WEIGHTS, SELF_CHECK, *ENCODERS, *(f"{n}.data" for n in ENCODERS))
)
"""Each bundle has these."""
PLAN_SUFFIX = ".plan"
REBUILD = "build it again with `build-engine bundle`"


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
        self,
        path: Path,
        *,
        check_hashes: bool = True,
        release_cache: bool = False,
        trusted_keys: Collection[str] = (),
        has_self_check: bool = True,
        hashing: Hashing | None = None,
    ) -> None:
        """Open the folder `path` and check every byte of it against the manifest, and every tensor
        against the sizes of the model.

        Args:
            check_hashes: False looks at the files' sizes only, for who has just checked it.
            release_cache: leave nothing of what was hashed in the page cache, as is done with every
                bundle that has plans: for who needs the memory for a GPU.
            trusted_keys: minisign's public keys, of which one must have signed the manifest; none
                takes any bundle.
            has_self_check: False for one whose builder has not come to it yet.
            hashing: of its files, where that was begun before; it is closed at the end.
        Raises:
            BundleError: it is absent, incomplete, changed, of a newer format, or signed by nobody
                who is trusted.
        """
        self.path = path
        content = _manifest_bytes(path)
        self.signed: signature.Signed | None = None
        """By whom, where there are keys to trust."""
        if trusted_keys:
            self.signed = signature.require(path / MANIFEST, content, trusted_keys)
        self.manifest = _manifest(path, content, FILES if has_self_check else FILES - {SELF_CHECK})
        # a GPU's engine copies: what the cache holds besides is memory that its copy lacks
        self._release_cache = release_cache or self.manifest.plans is not None
        names = list(self.manifest.files)
        hashing = hashing or Hashing(give_back=self._release_cache)
        with hashing as hashes, ThreadPoolExecutor(1) as pool:
            if check_hashes:
                hashes.begin(path, self.manifest.files)
            tensors = pool.submit(self._check_tensors, has_self_check)  # while others hash
            for name in names:
                problem = self._problem(name, hashes if check_hashes else None)
                if problem:
                    raise BundleError(*problem)
            self._decoder = tensors.result()
        known = {*names, MANIFEST, f"{MANIFEST}{signature.SUFFIX}"}
        self.unknown = sorted(file.name for file in path.iterdir() if file.name not in known)
        """What else lies in the folder; nothing reads it."""
        if self.unknown:
            log.warning("event=unknown_files bundle=%s files=%s", path, ",".join(self.unknown))

    def _problem(self, name: str, hashes: Hashing | None) -> tuple[Path, str, str] | None:
        path, expected = self.path / name, self.manifest.files[name]
        try:
            with open_regular(path, follow=False) as file:
                n_bytes = os.fstat(file.fileno()).st_size
            if n_bytes != expected.n_bytes:
                return path, f"has {n_bytes} bytes, the manifest says {expected.n_bytes}", REBUILD
            if hashes is None:
                return None
            sha256 = hashes.sha256(path, expected)
        except FileNotFoundError:
            return path, "is missing", REBUILD
        except OSError as error:
            return path, f"cannot be read ({error.strerror})", REBUILD
        if sha256 != expected.sha256:
            return (
                path,
                f"is damaged: sha256 {sha256[:12]}… is not the manifest's {expected.sha256[:12]}…",
                f"copy the bundle again, or {REBUILD}",
            )
        return None

    def _check_tensors(self, has_self_check: bool) -> SafetensorsFile:
        """The decoder's weights: what has the builder's bytes may yet be none of this model's."""
        with refusing():
            file = SafetensorsFile(self.path / DECODER_WEIGHTS)
            found = file.layout()
            if self._release_cache:
                file.give_back()
        problem = difference(self.manifest.spec.decoder, found)
        if problem:
            raise BundleError(self.path / DECODER_WEIGHTS, problem, REBUILD)
        for name in ENCODERS:
            check_external_data(self.path / name, REBUILD)
        if has_self_check:
            check_arrays(self.path / SELF_CHECK, self.manifest.spec, REBUILD)
        return file

    def decoder_weights(self, one_block: bool = False) -> Mapping[str, NDArray[Any]]:
        """The decoder's weights by name, as views of the mapped file.

        Args:
            one_block: keep no block in memory when another is asked for: a bundle larger than the
                memory can be checked.
        """
        weights = {name: self._decoder.tensor(name) for name in self._decoder.names()}
        return OneBlock(weights, self._decoder) if one_block else weights

    def self_check(self) -> Mapping[str, NDArray[Any]]:
        """Inputs, and what the cpu engine made of them when the bundle was built."""
        return read_arrays(self.path / SELF_CHECK, self.manifest.spec, REBUILD)


def prompts(bundle: Bundle) -> tuple[ChatTemplate, Tokenizer]:
    """What makes prompts for a bundle's model.

    Raises:
        BundleError: the template or the tokenizer cannot be used, or is another model's.
    """
    with refusing():
        template, tokenizer = ChatTemplate(bundle.path), Tokenizer(bundle.path)
        template.probe()
    largest, n_vocab = tokenizer.tokens()[-1], bundle.manifest.spec.decoder.vocab_size
    if largest >= n_vocab:
        problem = f"has the token {largest}, the model has {n_vocab}"
        raise BundleError(bundle.path / TOKENIZER, problem, REBUILD)
    return template, tokenizer


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """What is said of a checkpoint's file is said of the bundle's: it is refused, nothing stops.

    Raises:
        BundleError: for a CheckpointError.
    """
    try:
        yield
    except CheckpointError as error:
        raise BundleError(error.thing, error.problem, error.remedy) from None


def _manifest_bytes(path: Path) -> bytes:
    try:
        return read_bounded(path / MANIFEST, follow=False)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            path, f"is not a bundle: it has no {MANIFEST}", "make one with `build-engine bundle`"
        ) from None
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise BundleError(path / MANIFEST, problem, REBUILD) from None


def _manifest(path: Path, content: bytes, needed: Collection[str]) -> Manifest:
    """What a manifest says.

    Args:
        needed: files that it must list; plans it may, and nothing else.
    """
    manifest_path = path / MANIFEST
    try:
        written = msgspec.json.decode(content, type=_FormatOnly).format
        if written != FORMAT:
            raise BundleError(
                manifest_path,
                f"is of format {written}, this runtime reads format {FORMAT}",
                "update omni-edge" if written > FORMAT else REBUILD,
            )
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BundleError(manifest_path, f"cannot be read ({error})", REBUILD) from None
    for name in manifest.files:
        if Path(name).name != name:
            raise BundleError(manifest_path, f"names {name!r}, outside the bundle", REBUILD)
        if name not in needed and not name.endswith(PLAN_SUFFIX):
            raise BundleError(manifest_path, f"lists {name!r}, which no bundle has", REBUILD)
    for name in sorted(needed):
        if name not in manifest.files:
            raise BundleError(manifest_path, f"does not list {name}", REBUILD)
    problem = contradiction(manifest.spec)
    if problem:
        raise BundleError(manifest_path, f"cannot be right: {problem}", REBUILD)
    return manifest
