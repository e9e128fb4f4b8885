"""Quantize and bundle the full-size model (33 B parameters) where neither would fit: the proof.

The checkpoint is that of synthesize_checkpoint.py, 66 GB of seeded random weights, but a tensor
comes into being when the builder reads it and is gone when the builder lets go of it: its shards
are sparse files. What quantizes and bundles it is what `build-engine quantize` and `build-engine
bundle` run. Printed for each stage: seconds, bytes, and the most memory that was resident.

Usage:
    python scripts/build_full_size.py OUT                    # about 46 GB of disk, 20 GB remain
    python scripts/build_full_size.py OUT --layers 'MEM*EM'  # these blocks only
    python scripts/build_full_size.py OUT --quantize-only    # and remove what was written
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from published_config import CONFIG
from synthesize_checkpoint import SHARD_BYTES, pieces_of, shards, with_layers, write_small_files

from build_engine.bundle import build_bundle
from build_engine.checkpoint import Checkpoint
from build_engine.quantize import Job, quantize
from build_engine.recipe import known_recipes, load_recipe
from build_engine.samples import samples_of_checkpoint
from edge.engines.safetensors import header_bytes
from edge.errors import EdgeError

LAYOUT, SEED = "bf16", 0
SAMPLE = Path(__file__).resolve().parent.parent / "tests/assets/session/session.mp4"
MEMORY_EVERY_S = 0.02


class SparseCheckpoint(Checkpoint):
    """A synthetic checkpoint of which only what is in use exists, in memory and on the disk."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """Write its small files into `folder`, and its shards as headers with nothing behind."""
        folder.mkdir(parents=True)
        write_small_files(folder, config, LAYOUT, SHARD_BYTES)
        self._header_bytes: dict[str, int] = {}
        for shard, tensors in shards(config, LAYOUT):
            header = header_bytes(tensors)
            self._header_bytes[shard] = len(header)
            (folder / shard).write_bytes(header)
            n_bytes = sum(int(np.prod(shape)) * dtype.itemsize for dtype, shape in tensors.values())
            os.truncate(folder / shard, len(header) + n_bytes)
        self._in_use: dict[str, set[str]] = {}
        super().__init__(folder)

    def tensor(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Write the tensor to its place, unless it is there, and read it from there."""
        in_use = self._in_use.setdefault(self._shard_of[name], set())
        if name not in in_use:
            in_use.add(name)
            source = self._file_of(name)
            with source.path.open("r+b") as file:
                file.seek(source.offset(name))
                for piece in pieces_of(name, source.dtype(name), source.shape(name), SEED):
                    file.write(np.ascontiguousarray(piece).view(np.uint8).data)
        return super().tensor(name, shape)

    def release(self) -> None:
        """Let go, and give the disk its room back."""
        super().release()
        for shard in self._in_use:
            path = self.folder / shard
            n_bytes = path.stat().st_size
            os.truncate(path, self._header_bytes[shard])
            os.truncate(path, n_bytes)
        self._in_use.clear()


class Stages:
    """Measures what is done, one stage after the other."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Time one stage and watch its memory; further figures may be put into what it gives."""
        row: dict[str, Any] = {"stage": name}
        with _Watch() as watch:
            yield row
        row |= {"seconds": round(watch.seconds, 1), "resident_gb": round(watch.most / 1e9, 2)}
        row["anonymous_gb"] = round(watch.most_anonymous / 1e9, 2)
        self.rows.append(row)
        print(json.dumps(row), flush=True)


class _Watch(threading.Thread):
    """Largest resident size of this process, mapped files included, while it is open."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = self.most_anonymous = 0
        self.seconds = 0.0
        self._over = threading.Event()

    def run(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._over.wait(MEMORY_EVERY_S):
            _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
            self.most = max(self.most, int(resident) * page)
            self.most_anonymous = max(self.most_anonymous, (int(resident) - int(shared)) * page)

    def __enter__(self) -> _Watch:
        self._began = time.monotonic()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
        self.seconds = time.monotonic() - self._began


def folder_bytes(folder: Path) -> int:
    """Of the files in it."""
    return sum(path.stat().st_size for path in folder.iterdir())


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every stage, measured."""
    config = CONFIG if arguments.layers is None else with_layers(CONFIG, arguments.layers)
    arguments.out.mkdir(parents=True)
    source, quantized = arguments.out / "checkpoint", arguments.out / "quantized"
    stages = Stages()
    checkpoint = SparseCheckpoint(source, config)
    with stages.stage("samples") as row:
        samples = samples_of_checkpoint(checkpoint, arguments.samples)
        checkpoint.release()
        row["tokens"] = sum(map(len, samples))
    job = Job(checkpoint, load_recipe(arguments.recipe), samples, quantized)
    n_read = sum(map(checkpoint.n_bytes, checkpoint.names()))
    bar = tqdm(desc="quantize", total=n_read, unit="B", unit_scale=True)
    with stages.stage("quantize") as row, bar:
        row |= {"linears": quantize(job, lambda done, _: bar.update(done - bar.n))}
        row |= {"read_gb": n_read / 1e9, "written_gb": folder_bytes(quantized) / 1e9}
    if not arguments.quantize_only:
        with stages.stage("bundle") as row:
            build_bundle(quantized, arguments.out / "bundle", "cpu", lambda *_: None)
            row["written_gb"] = folder_bytes(arguments.out / "bundle") / 1e9
    shutil.rmtree(source)
    shutil.rmtree(quantized)
    return stages.rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder to make; the bundle stays in it")
    parser.add_argument("--layers", metavar="PATTERN_OR_N", help="fewer blocks; default: all 52")
    parser.add_argument("--recipe", default="nvfp4", help=", ".join(known_recipes()))
    parser.add_argument("--samples", type=Path, nargs="+", default=[SAMPLE], metavar="FILE")
    parser.add_argument("--quantize-only", action="store_true", help="measure no bundle, keep none")
    arguments = parser.parse_args()
    try:
        rows = run(arguments)
    except (EdgeError, OSError) as error:
        print(f"build_full_size: {error}", file=sys.stderr)
        return 1
    if arguments.quantize_only:
        shutil.rmtree(arguments.out)
    total = {
        "stage": "total",
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "resident_gb": max(row["resident_gb"] for row in rows),
    }
    print(json.dumps(total))
    return 0


if __name__ == "__main__":
    sys.exit(main())
