"""Whether a media file has all the bytes that it says it has.

A file whose copy was broken off lacks some. What else is wrong with a file says nothing of that:
times that its header announces and its recorder never wrote, or a damaged place.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO, Literal

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_ATOMS = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"}
_UNKNOWN_SIZES = {0, 0xFFFFFFFF}  # of a WAV that was written into a pipe


def lacks_bytes(source: Path | bytes) -> bool | None:
    """Whether the outermost parts of a file are longer than it is.

    Args:
        source: a file, or what is in one.
    Returns:
        None where its format does not say; MP4 and its kin, Matroska, RIFF (WAV, AVI), RF64 and
        AIFF do.
    Raises:
        OSError: it cannot be read.
    Source: ISO/IEC 14496-12, 4.2; RFC 8794, 4 and 6; Multimedia Programming Interface 1.0 (RIFF);
        EBU Tech 3306 (RF64).
    """
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        n_bytes = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(12)
        file.seek(0)
        if head[4:8] in _ATOMS:
            return _end_of_atoms(file, n_bytes) > n_bytes
        if head[:4] == _EBML:
            return _end_of_segment(file) > n_bytes
        if head[:4] in (b"RIFF", b"FORM"):
            return _end_of_chunks(file, "big" if head[:4] == b"FORM" else "little") > n_bytes
        if head[:4] in (b"RF64", b"BW64"):
            return int.from_bytes(file.read(28)[20:28], "little") + 8 > n_bytes
    return None


def _end_of_atoms(file: BinaryIO, n_bytes: int) -> int:
    end = 0
    while end < n_bytes:
        file.seek(end)
        header = file.read(16)
        size = int.from_bytes(header[:4], "big")
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        if size == 0:  # up to the end, whatever that is
            return n_bytes
        end += max(size, 8)
    return end


def _end_of_segment(file: BinaryIO) -> int:
    while element := file.read(4):
        size = _ebml_size(file)
        if size is None:  # of a recorder that goes on, or died
            return 0
        end = file.tell() + size
        if element == _SEGMENT:
            return end
        file.seek(end)
    return 0


def _ebml_size(file: BinaryIO) -> int | None:
    first = file.read(1)
    if not first or not first[0]:
        return None
    n_more = 8 - first[0].bit_length()
    size = int.from_bytes(first + file.read(n_more), "big") & ((1 << 7 * (n_more + 1)) - 1)
    return None if size == (1 << 7 * (n_more + 1)) - 1 else size


def _end_of_chunks(file: BinaryIO, order: Literal["big", "little"]) -> int:
    end = 0
    while len(header := file.read(8)) == 8 and header[:4] in (b"RIFF", b"FORM"):
        size = int.from_bytes(header[4:], order)
        if size in _UNKNOWN_SIZES:
            return 0
        end = file.tell() + size
        file.seek(end + size % 2)
    return end
