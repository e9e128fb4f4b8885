"""Checkpoint -> bundle: packs the decoder, emits the encoders, checks the result, renames it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import msgspec

import edge
from build_engine.building import building, refuse_existing
from build_engine.checkpoint import Checkpoint
from build_engine.decoder_weights import write_decoder
from build_engine.encoder_graphs import write_encoders
from build_engine.signing import SecretKey, signature_of
from build_engine.survey import require_sound
from build_engine.verify import check_prompts, verify, write_self_check
from edge.engines.bundle import DECODER_WEIGHTS, FORMAT, MANIFEST, Bundle, Manifest
from edge.engines.cpu import CpuEngine
from edge.engines.hashing import file_entry
from edge.model.tokenizer import TEMPLATE, read_template

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with a stage's name, its steps done and its steps in all."""

TARGETS = ("cpu",)


def build_bundle(
    checkpoint_folder: Path,
    out: Path,
    target: str,
    progress: Progress,
    key: SecretKey | None = None,
) -> Manifest:
    """Build, verify and only then name the bundle `out`.

    Args:
        key: signs it.
    Raises:
        CheckpointError: the checkpoint is not complete or not of this model.
        BundleError: the built bundle fails its own check.
        ConfigurationError: `out` exists, or somebody else is building it.
    """
    refuse_existing(out)
    checkpoint = Checkpoint(checkpoint_folder)
    require_sound(checkpoint)
    with _partial_folder(out) as folder:
        _copy_tokenizer(checkpoint, folder)
        write_decoder(checkpoint, folder / DECODER_WEIGHTS, progress)
        write_encoders(checkpoint, folder, progress)
        manifest = Manifest(
            format=FORMAT,
            name=checkpoint.folder.resolve().name,
            target=target,
            recipe=checkpoint.quantization,
            spec=checkpoint.spec,
            checkpoint_sha256=checkpoint.sha256(),
            builder_version=edge.__version__,
            files={},
        )
        manifest = _write_manifest(manifest, folder)
        written = Bundle(folder, check_hashes=False, has_self_check=False)
        write_self_check(CpuEngine(written, exact=True, frugal=True), folder)
        manifest = _write_manifest(manifest, folder)
        progress("verify", 0, 1)
        verify(folder).require(folder)
        progress("verify", 1, 1)
        if key is not None:
            key.sign(folder / MANIFEST)
        folder.rename(out)
    return manifest


@contextlib.contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    """An empty folder beside `out` that disappears unless it was renamed."""
    with building(out) as folder:
        for left in folder.iterdir():  # by one that was killed
            left.unlink()
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _copy_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    shutil.copyfile(checkpoint.folder / "tokenizer.json", folder / "tokenizer.json")
    written = read_template(checkpoint.folder)
    if written is not None:
        (folder / TEMPLATE).write_text(written, encoding="utf-8", newline="")
    check_prompts(folder)


def _write_manifest(manifest: Manifest, folder: Path) -> Manifest:
    """With the files that are new."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    entries = {path.name: manifest.files.get(path.name) or file_entry(path) for path in files}
    complete = msgspec.structs.replace(manifest, files=entries)
    save_manifest(complete, folder)
    return complete


def save_manifest(manifest: Manifest, folder: Path) -> None:
    """Write manifest.json as it is, at once or not at all; a signature of another one goes."""
    signature_of(folder).unlink(missing_ok=True)
    partial = folder / f".{MANIFEST}.partial"
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    partial.rename(folder / MANIFEST)
