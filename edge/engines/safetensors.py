"""The safetensors file format: read by mapping, written tensor by tensor.

Our own reader, because the reference library returns no bfloat16 or float8 to numpy and
copies what the engine wants to map. Source: the format's specification (8-byte little-endian
header length, JSON header, raw data), and what `SafeTensors::read_metadata` of the reference
refuses (safetensors 0.8, `src/tensor.rs`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import mmap
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, TypeGuard

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edge.errors import CheckpointError
from edge.files import MAX_JSON_BYTES, open_regular

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
BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
"""Of a value, by every dtype of the format. A tensor of one that is not in DTYPES may be there as
long as nothing reads it."""
MAX_HEADER_BYTES = MAX_JSON_BYTES
"""100,000 tensors' have 12 MB. The reference takes 100 MB; of which Python makes gigabytes."""
MAX_DIMENSIONS = 32
"""numpy 1's."""
Layout: TypeAlias = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""dtype and shape by name, in the file's order."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
DATA_ALIGNMENT_BYTES = 64
"""Where writers let data start: a cache line, which a kernel would else read in two halves.
Readers accept any start."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where one tensor lies, and what its bytes mean."""

    dtype: str
    """By the format's name; it need not be one of DTYPES."""
    shape: tuple[int, ...]
    start: int
    end: int
    """Both from the first byte of the data."""


class SafetensorsFile:
    """One mapped file: tensors are views, nothing is read before it is used."""

    def __init__(self, path: Path) -> None:
        """Map `path` and check its header as the reference does: tensors fill the data, one after
        the other, each with as many bytes as its shape has; nothing lies between or behind them.

        Raises:
            CheckpointError: the file is absent, truncated or not safetensors.
        """
        self.path = path
        try:
            with open_regular(path) as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise MemoryError from None
            raise self._wrong(f"cannot be read ({error.strerror})", "copy it again") from None
        except ValueError:  # mmap's word for an empty file
            raise self._wrong("is empty", "copy it again") from None
        with contextlib.suppress(OSError):  # a kernel without them
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._start, self._entries = self._read_header()

    def _wrong(self, problem: str, remedy: str = "download or copy it again") -> CheckpointError:
        return CheckpointError(self.path, problem, remedy)

    def _read_header(self) -> tuple[int, dict[str, _Entry]]:
        length, n_bytes = int.from_bytes(self._map[:8], "little"), len(self._map)
        if not 2 <= length <= n_bytes - 8:
            raise self._wrong("has no safetensors header")
        if length > MAX_HEADER_BYTES:
            raise self._wrong(f"has a header of {length} bytes, at most {MAX_HEADER_BYTES}")
        try:
            text = self._map[8 : 8 + length].decode("utf-8")
            if not text.startswith("{"):
                raise ValueError("it is no object")
            header = json.loads(
                text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_refuse
            )
            told = header.pop("__metadata__", None)
            if told is not None and not _is_texts(told):
                raise ValueError("its __metadata__ is no object of texts")
            entries = {name: _entry(name, value) for name, value in header.items()}
        except (ValueError, RecursionError) as error:
            raise self._wrong(f"has no safetensors header ({error})") from None
        problem, end = _gap(entries)
        if problem:
            raise self._wrong(f"has a wrong safetensors header ({problem})")
        start = 8 + length
        if start + end > n_bytes:
            raise self._wrong(f"is truncated: {n_bytes} bytes of {start + end}")
        if start + end < n_bytes:
            raise self._wrong(f"has {n_bytes - start - end} bytes behind its last tensor")
        return start, entries

    def release(self) -> None:
        """Let go of what was read: it need not stay in memory, views stay valid."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def give_back(self) -> None:
        """Let go of it in the kernel's cache, too, which keeps it for whoever reads it again."""
        self.release()
        with self.path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def names(self) -> list[str]:
        """Names of the tensors, in the header's order."""
        return list(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without touching its data."""
        return self._entries[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """dtype of one tensor, without touching its data.

        Raises:
            CheckpointError: it is none that is known here.
        """
        dtype = self._entries[name].dtype
        if dtype not in DTYPES:
            raise CheckpointError(
                name, f"has the unknown dtype {dtype!r}", f"known: {', '.join(DTYPES)}"
            )
        return DTYPES[dtype]

    def layout(self) -> Layout:
        """dtype and shape of each tensor, by name.

        Raises:
            CheckpointError: one has a dtype that is not known here.
        """
        return {name: (self.dtype(name), entry.shape) for name, entry in self._entries.items()}

    def n_bytes(self, name: str) -> int:
        """Bytes of one tensor."""
        entry = self._entries[name]
        return entry.end - entry.start

    def offset(self, name: str) -> int:
        """Where in the file one tensor begins, in bytes."""
        return self._start + self._entries[name].start

    def tensor(self, name: str) -> NDArray[Any]:
        """One tensor as a read-only view of the mapped file, in the file's dtype."""
        entry, dtype = self._entries[name], self.dtype(name)
        n_values = math.prod(entry.shape)
        return np.frombuffer(self._map, dtype, n_values, self.offset(name)).reshape(entry.shape)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are told once: which one counts is a matter of the reader."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it has {_shown(name)} twice")
        found[name] = value
    return found


def _refuse(number: str) -> None:
    raise ValueError(f"it has the number {_shown(number)}")


def _is_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _entry(name: str, value: object) -> _Entry:
    """What a header says of one tensor.

    Raises:
        ValueError: it says it in another form.
    """
    name.encode()  # half a surrogate is no text
    if not isinstance(value, dict):
        raise ValueError(f"{_shown(name)} is no object")
    dtype, shape, offsets = (value.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{_shown(name)} has the dtype {_shown(dtype)}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{_shown(name)} has the shape {_shown(shape)}")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{_shown(name)} has the data_offsets {_shown(offsets)}")
    return _Entry(dtype, tuple(shape), *offsets)


def _are_counts(values: object) -> TypeGuard[list[int]]:
    """A list of whole numbers from 0, each of which an address can be."""
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 1 << 63 for value in values
    )


def _gap(entries: Mapping[str, _Entry]) -> tuple[str | None, int]:
    """What is wrong with how tensors lie one after the other; where the last one ends."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end or entry.end < entry.start:
            where = f"{entry.start}..{entry.end}, the one before ends at {end}"
            return f"{_shown(name)} lies at {where}", end
        # each dimension counts, although one is 0
        if math.prod(max(size, 1) for size in entry.shape) >= 1 << 60:
            return f"{_shown(name)} has the shape {_shown(list(entry.shape))}", end
        n_bits = math.prod(entry.shape) * BITS[entry.dtype]
        if n_bits != 8 * (entry.end - entry.start):
            size = f"{entry.end - entry.start} bytes for {entry.dtype} {list(entry.shape)}"
            return f"{_shown(name)} has {size}", end
        end = entry.end
    return None, end


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


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
