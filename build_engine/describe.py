"""What is in a checkpoint or a bundle: formats and sizes, by kind of tensor."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from build_engine.checkpoint import Checkpoint
from build_engine.stored import format_of
from edge.engines.bundle import DECODER_WEIGHTS, MANIFEST, Bundle
from edge.engines.safetensors import SafetensorsFile

SCALES = ("weight_scale", "weight_scale_2", "input_scale", "k_scale", "v_scale")


@dataclass(frozen=True)
class Row:
    """Tensors whose names differ in their numbers only."""

    name: str
    """With N for each number."""
    format: str
    n: int
    n_bytes: int
    """With their scales."""


@dataclass(frozen=True)
class Description:
    """A table, and facts about the whole."""

    facts: dict[str, Any]
    rows: list[Row]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.facts, "tensors": [asdict(row) for row in self.rows]}

    def table(self) -> str:
        """For people."""
        lines = [f"{key:18} {value}" for key, value in self.facts.items()]
        width = max(len(row.name) for row in self.rows)
        lines += ["", f"{'tensors':{width}}  {'format':14} {'count':>6} {'MB':>10}"]
        for row in self.rows:
            lines.append(f"{row.name:{width}}  {row.format:14} {row.n:6} {row.n_bytes / 1e6:10.2f}")
        total = sum(row.n_bytes for row in self.rows)
        return "\n".join([*lines, f"{'':{width}}  {'':14} {'':6} {total / 1e6:10.2f}"])


def describe(path: Path) -> Description:
    """Look into a bundle or a checkpoint without reading its weights.

    Raises:
        BundleError, CheckpointError: it cannot be trusted or is incomplete.
    """
    return _bundle(path) if (path / MANIFEST).exists() else _checkpoint(path)


def _checkpoint(path: Path) -> Description:
    checkpoint = Checkpoint(path)
    found: list[tuple[str, str, int]] = []
    for name in checkpoint.names():
        module, _, last = name.rpartition(".")
        if last in SCALES:
            owner = f"{module}.weight"
            found.append((owner if checkpoint.has(owner) else name, "", checkpoint.n_bytes(name)))
        elif last == "weight" and name.startswith("language_model."):
            known = format_of(checkpoint, module)
            shown = str(checkpoint.dtype(name)) if known == "bf16" else known
            found.append((name, shown, checkpoint.n_bytes(name)))
        else:
            found.append((name, str(checkpoint.dtype(name)), checkpoint.n_bytes(name)))
    facts = {
        "checkpoint": str(path),
        "layers": checkpoint.spec.decoder.pattern,
    }
    return Description(facts, _grouped(found))


def _bundle(path: Path) -> Description:
    bundle = Bundle(path)
    manifest = bundle.manifest
    file = SafetensorsFile(path / DECODER_WEIGHTS)
    found = [(name, str(file.dtype(name)), file.n_bytes(name)) for name in file.names()]
    facts: dict[str, Any] = {
        "bundle": str(path),
        "model": manifest.name,
        "target": manifest.target,
        "recipe": manifest.recipe,
        "layers": manifest.spec.decoder.pattern,
        "checkpoint": manifest.checkpoint_sha256,
        "built by": manifest.builder_version,
    }
    facts |= {name: f"{e.n_bytes:>12} bytes {e.sha256}" for name, e in manifest.files.items()}
    return Description(facts, _grouped(found))


def _grouped(found: list[tuple[str, str, int]]) -> list[Row]:
    """Sum up tensors of one kind; encoders, whose every layer is alike, by their tower."""
    formats = {name: shown for name, shown, _ in found if shown}
    groups: dict[tuple[str, str], list[int]] = {}
    for name, shown, n_bytes in found:
        kind = re.sub(r"\d+", "N", name)
        if kind.startswith(("vision_model", "sound_encoder")):
            kind = f"{kind.split('.')[0]}.*"
        group = groups.setdefault((kind, formats.get(name, shown)), [0, 0])
        group[0] += bool(shown)
        group[1] += n_bytes
    return [Row(kind, shown, n, n_bytes) for (kind, shown), (n, n_bytes) in groups.items()]
