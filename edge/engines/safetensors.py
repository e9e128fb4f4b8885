"""The safetensors file format: read by mapping, written tensor by tensor.

Our own reader, because the reference library returns no bfloat16 or float8 to numpy and
copies what the engine wants to map. Source: the format's specification (8-byte little-endian
header length, JSON header, raw data).
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edge.errors import CheckpointError

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
Layout: TypeAlias = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""dtype and shape by name, in the file's order."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
DATA_ALIGNMENT_BYTES = 64
"""Where writers let data start: a cache line, which a kernel would else read in two halves.
Readers accept any start."""


class SafetensorsFile:
    """One mapped file: tensors are views, nothing is read before it is used."""

    def __init__(self, path: Path) -> None:
        """Map `path` and check its header.

        Raises:
            CheckpointError: the file is absent, truncated or not safetensors.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CheckpointError(path, f"cannot be read ({error})", "copy it again") from None
        with contextlib.suppress(OSError):  # a kernel without them
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._start, self._header = self._read_header()

    def _read_header(self) -> tuple[int, dict[str, Any]]:
        length = int.from_bytes(self._map[:8], "little")
        try:
            if not 2 <= length <= len(self._map) - 8:
                raise ValueError
            header = json.loads(self._map[8 : 8 + length])
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(
                self.path, "has no safetensors header", "download or copy it again"
            ) from None
        if 8 + length + end > len(self._map):
            raise CheckpointError(
                self.path,
                f"is truncated: {len(self._map)} bytes of {8 + length + end}",
                "download or copy it again",
            )
        return 8 + length, header

    def release(self) -> None:
        """Let go of what was read: it need not stay in memory, views stay valid."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def give_back(self) -> None:
        """Let go of it in the kernel's cache, too, which keeps it for whoever reads it again."""
        self.release()
        with self.path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def names(self) -> list[str]:
        """Names of the tensors, in the file's order."""
        return list(self._header)

    def __contains__(self, name: str) -> bool:
        return name in self._header

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without touching its data."""
        return tuple(self._header[name]["shape"])

    def dtype(self, name: str) -> np.dtype[Any]:
        """dtype of one tensor, without touching its data.

        Raises:
            CheckpointError: it is none that is known here.
        """
        dtype = self._header[name]["dtype"]
        if dtype not in DTYPES:
            raise CheckpointError(
                name, f"has the unknown dtype {dtype!r}", f"known: {', '.join(DTYPES)}"
            )
        return DTYPES[dtype]

    def n_bytes(self, name: str) -> int:
        """Bytes of one tensor."""
        start, end = self._header[name]["data_offsets"]
        return int(end - start)

    def offset(self, name: str) -> int:
        """Where in the file one tensor begins, in bytes."""
        return self._start + int(self._header[name]["data_offsets"][0])

    def tensor(self, name: str) -> NDArray[Any]:
        """One tensor as a read-only view of the mapped file, in the file's dtype."""
        entry, dtype = self._header[name], self.dtype(name)
        shape = tuple(entry["shape"])
        start, end = entry["data_offsets"]
        if end - start != math.prod(shape) * dtype.itemsize:
            raise CheckpointError(
                name, f"has {end - start} bytes for shape {shape} {dtype}", "copy the file again"
            )
        view = np.frombuffer(self._map, dtype, math.prod(shape), self._start + start)
        return view.reshape(shape)


def data_offsets(layout: Layout) -> dict[str, tuple[int, int]]:
    """First byte and end of each tensor's data, by name.

    The format allows no holes, so the tensors that fill whole cache lines lie in front, each
    aligned, and scalars and other small ones behind them.
    """
    sizes = {name: math.prod(shape) * dtype.itemsize for name, (dtype, shape) in layout.items()}
    found, offset = {}, 0
    for name in sorted(sizes, key=lambda name: sizes[name] % DATA_ALIGNMENT_BYTES != 0):
        found[name] = (offset, offset + sizes[name])
        offset += sizes[name]
    return found


def header_bytes(layout: Layout) -> bytes:
    """What stands before the data of a file with these tensors, padded to a cache line."""
    offsets = data_offsets(layout)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, (dtype, shape) in layout.items():
        header[name] = {
            "dtype": NAMES[dtype],
            "shape": list(shape),
            "data_offsets": list(offsets[name]),
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text


class SafetensorsWriter:
    """Writes one file whose shapes are known beforehand, one tensor at a time, in order."""

    def __init__(self, path: Path, layout: Layout) -> None:
        """Create `path`.

        Args:
            layout: by name, in the order in which `write` will be called.
        """
        self._expected = iter(layout.items())
        self._offsets, header = data_offsets(layout), header_bytes(layout)
        self._start = len(header)
        self._file = path.open("wb")
        self._file.write(header)

    def write(self, name: str, parts: Iterable[NDArray[Any]]) -> None:
        """Write the next tensor of the layout, given as pieces that lie behind one another."""
        expected, (dtype, shape) = next(self._expected)
        self._file.seek(self._start + self._offsets[expected][0])
        n_left = math.prod(shape)
        for part in parts:
            n_left -= part.size
            if (name, part.dtype) != (expected, dtype) or n_left < 0:
                raise ValueError(f"expected {expected} {dtype}, not {name} {part.dtype}")
            self._file.write(np.ascontiguousarray(part).view(np.uint8).data)
        if n_left:
            raise ValueError(f"{name} of shape {shape} lacks {n_left} values")

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        missing = next(self._expected, None)
        if kind is None and missing is not None:
            raise ValueError(f"{self._file.name} was closed without {missing[0]}")


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write tensors that are all in memory."""
    layout = {name: (values.dtype, values.shape) for name, values in tensors.items()}
    with SafetensorsWriter(path, layout) as writer:
        for name, values in tensors.items():
            writer.write(name, [values])
