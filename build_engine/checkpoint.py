"""A published checkpoint, read lazily: a tensor is touched only when it is asked for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from build_engine.quantization_config import Told
from edge.engines.safetensors import SafetensorsFile
from edge.errors import CheckpointError
from edge.files import read_bounded
from edge.model.config_keys import (
    GENERATION,
    IMAGES,
    TOKENIZER,
    Judged,
    judge,
    judge_config,
    published_names,
    refuse,
)
from edge.model.spec import ModelSpec, model_spec

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
QUANTIZATION = "hf_quant_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
PROCESSORS = tuple(
    f"{kind}_config.json" for kind in ("preprocessor", "processor", "video_preprocessor")
)
MAX_JSON_BYTES = 1 << 26
"""The published index of shards has 3 MB."""
RESTORE = "download the checkpoint again, complete"
CHECKED_AT_ONCE = 1 << 22
NOT_FINITE: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "bfloat16": (np.uint16, 0x7F80),
    "float8_e4m3fn": (np.uint8, 0x7F),
}
"""By dtype: the bits that are all set in a NaN or an infinity."""


class Checkpoint:
    """A directory in the published layout: configuration files and safetensors shards."""

    def __init__(self, folder: Path) -> None:
        """Open `folder`; shards are mapped when first used.

        Raises:
            CheckpointError: a file is missing or is not what its name says.
        """
        self.folder = folder
        if not folder.is_dir():
            raise CheckpointError(folder, "is not a directory", "give a checkpoint's folder")
        self.config = self.json("config.json")
        self.generation = self.json("generation_config.json")
        self.processors = self._processors()
        self.spec: ModelSpec = model_spec(self.config, self.generation, self.processors)
        refuse(judge(TOKENIZER_CONFIG, self.tokenizer_config, TOKENIZER))
        self._files: dict[str, SafetensorsFile] = {}
        self._shard_of = self._shards()
        self.read: dict[str, str] = {}
        """sha256 of each tensor that was read from end to end."""
        self.saturated: dict[str, int] = {}
        """By module: block scales that are NaN in the file, and were read as the largest number."""

    def _processors(self) -> dict[str, dict[str, Any]]:
        """What is said of the processing of pictures and sound, in any of the files for it."""
        found = {name: self.json(name) for name in PROCESSORS if (self.folder / name).exists()}
        for name, values in list(found.items()):
            for part in ("image_processor", "video_processor", "feature_extractor"):
                if isinstance(values.get(part), dict):
                    found[f"{name}.{part}"] = values[part]
        return found

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        """tokenizer_config.json, which need not be there."""
        exists = (self.folder / TOKENIZER_CONFIG).exists()
        return self.json(TOKENIZER_CONFIG) if exists else {}

    def judged(self) -> Iterator[Judged]:
        """What is done about each key of each configuration file."""
        yield from judge_config(published_names(self.config))
        yield from judge("generation_config.json", self.generation, GENERATION)
        for name, values in self.processors.items():
            yield from judge(name, values, IMAGES)
        yield from judge(TOKENIZER_CONFIG, self.tokenizer_config, TOKENIZER)

    def _shards(self) -> dict[str, str]:
        if (self.folder / INDEX).exists():
            weight_map = self.json(INDEX).get("weight_map")
            if not isinstance(weight_map, dict):
                raise CheckpointError(self.folder / INDEX, "has no weight_map", RESTORE)
            for shard in weight_map.values():
                if not isinstance(shard, str) or Path(shard).name != shard:
                    problem = f"names the shard {shard!r}, which is no file beside it"
                    raise CheckpointError(self.folder / INDEX, problem, RESTORE)
            return weight_map
        return dict.fromkeys(self._file(SINGLE).names(), SINGLE)

    def _file(self, shard: str) -> SafetensorsFile:
        if shard not in self._files:
            self._files[shard] = SafetensorsFile(self.folder / shard)
        return self._files[shard]

    def json(self, name: str) -> dict[str, Any]:
        """One of the checkpoint's JSON files.

        Raises:
            CheckpointError: it is absent or not a JSON object.
        """
        try:
            values = json.loads(read_bounded(self.folder / name, MAX_JSON_BYTES))
        except FileNotFoundError:
            raise CheckpointError(self.folder / name, "is missing", RESTORE) from None
        except OSError as error:
            problem = f"cannot be read ({error.strerror})"
            raise CheckpointError(self.folder / name, problem, RESTORE) from None
        except (ValueError, RecursionError) as error:
            raise CheckpointError(self.folder / name, f"is not JSON ({error})", RESTORE) from None
        if not isinstance(values, dict):
            raise CheckpointError(self.folder / name, "is not a JSON object", RESTORE)
        return values

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._shard_of)

    @cached_property
    def told(self) -> dict[str, Told]:
        """By file, what the checkpoint says of its quantization.

        Raises:
            CheckpointError: it is not of ModelOpt's form.
        """
        return {name: Told(name, said) for name, said in self._quantization().items()}

    @property
    def quantization(self) -> str:
        """How it is quantized as a whole, in ModelOpt's words."""
        algorithms = (said.get("quant_algo") for said in self._quantization().values())
        return str(next(filter(None, algorithms), "unquantized"))

    def _quantization(self) -> dict[str, dict[str, Any]]:
        found = {"config.json.quantization_config": self.config.get("quantization_config")}
        if (self.folder / QUANTIZATION).exists():
            found[QUANTIZATION] = self.json(QUANTIZATION).get("quantization")
        for name, said in found.items():
            if said is not None and not isinstance(said, dict):
                raise CheckpointError(name, "is not an object", RESTORE)
        return {name: said for name, said in found.items() if isinstance(said, dict)}

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._shard_of

    def dtype(self, name: str) -> np.dtype[Any]:
        """dtype of one tensor, without touching its data.

        Raises:
            CheckpointError: it is missing or of an unknown dtype.
        """
        return self._file_of(name).dtype(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor as the file has it."""
        return self._file_of(name).shape(name)

    def shard(self, name: str) -> str:
        """Name of the file that holds a tensor."""
        return self._shard_of[name]

    def n_bytes(self, name: str) -> int:
        """Bytes of one tensor in the file."""
        return self._file_of(name).n_bytes(name)

    def release(self) -> None:
        """Let go of what was read: it need not stay in memory."""
        for file in self._files.values():
            file.release()

    def _file_of(self, name: str) -> SafetensorsFile:
        shard = self._shard_of.get(name)
        if shard is None or name not in self._file(shard):
            raise CheckpointError(name, f"is missing from {self.folder}", RESTORE)
        return self._file(shard)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """See that a tensor is there, without touching its data.

        Args:
            shape: what the configuration says it must be.
        Raises:
            CheckpointError: it is missing or has another shape.
        """
        file = self._file_of(name)
        if file.shape(name) != shape and (shape, math.prod(file.shape(name))) != ((), 1):
            raise CheckpointError(
                name,
                f"has shape {file.shape(name)}, but config.json means {shape}",
                "use the config.json that belongs to these weights",
            )

    def tensor(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """One tensor in the file's own dtype, as a view of the mapped shard.

        Args:
            shape: what the configuration says it must be.
        Raises:
            CheckpointError: as `check`.
        """
        self.check(name, shape)
        return self._file_of(name).tensor(name).reshape(shape)

    def finite(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """`whole`, without a NaN or an infinity.

        Raises:
            CheckpointError: as `tensor`, or there is one.
        """
        return self.whole(name, shape, finite=True)

    def whole(self, name: str, shape: tuple[int, ...], *, finite: bool = False) -> NDArray[Any]:
        """`tensor`, read once from end to end."""
        values = self.tensor(name, shape)
        flat, digest = values.reshape(-1), hashlib.sha256()
        for start in range(0, flat.size, CHECKED_AT_ONCE):
            piece = flat[start : start + CHECKED_AT_ONCE]
            if finite and not _all_finite(piece):
                raise CheckpointError(name, "holds a NaN or an infinity", RESTORE)
            if name not in self.read:
                digest.update(piece.view(np.uint8).data)
        self.read.setdefault(name, digest.hexdigest())
        return values

    def float32(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """One tensor converted to float32.

        Raises:
            CheckpointError: as `tensor`, or it holds a NaN or an infinity.
        """
        return self.finite(name, shape).astype(np.float32)

    def sha256(self) -> str:
        """Over the configuration and every tensor that was read from end to end.

        It is the identity of what was made of them: the same weights in other shards have the same,
        and tensors that nothing needs do not count.
        """
        tensors = [
            (name, str(self.dtype(name)), self.shape(name), content)
            for name, content in sorted(self.read.items())
        ]
        return hashlib.sha256(
            json.dumps([self.config, tensors], sort_keys=True).encode()
        ).hexdigest()

    def files(self) -> dict[str, tuple[int, int, int]]:
        """By shard: its size, when it was changed (ns) and its inode, which change with it."""
        found = {}
        for shard in sorted(set(self._shard_of.values())):
            self._file(shard)  # says what is wrong with it
            about = (self.folder / shard).stat()
            found[shard] = (about.st_size, about.st_mtime_ns, about.st_ino)
        return found


def _all_finite(values: NDArray[Any]) -> bool:
    if values.dtype.name in NOT_FINITE:  # numpy knows the special values of its own types only
        kind, special = NOT_FINITE[values.dtype.name]
        return not bool(((values.view(kind) & kind(special)) == kind(special)).any())
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())
