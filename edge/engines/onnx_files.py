"""Where an ONNX file says that its weights lie, read off its bytes: the runtime has no onnx.

ONNX Runtime follows such a place out of the bundle, to files that no hash was taken of.
Source: onnx.proto3 of ONNX 1.17; a message is fields, each a number and a wire type.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edge.errors import BundleError
from edge.files import read_bounded

MAX_GRAPH_BYTES = 1 << 26
"""Of a graph without its weights. The published vision tower's has below 1 MB."""
MAX_DEPTH = 16

INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Of each kind of message that tensors may be in: the fields that lead to them."""
EXTERNAL_DATA, KEY, VALUE = 13, 1, 2
LOCATION = b"location"
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def check_external_data(path: Path, remedy: str) -> None:
    """See that a graph takes its weights from the one file beside it, and from within that.

    Args:
        path: of the graph; its weights are in the file of the same name with `.data` behind it.
    Raises:
        BundleError: it takes them from elsewhere, or is no ONNX file.
    """
    try:
        content = read_bounded(path, MAX_GRAPH_BYTES, follow=False)
    except OSError as error:
        raise BundleError(path, f"cannot be read ({error.strerror})", remedy) from None
    weights = f"{path.name}.data"
    n_bytes = path.with_name(weights).stat().st_size
    try:
        for told in _external(content, "model", 0):
            if told.get("location") != weights:
                raise BundleError(path, f"takes weights from {told.get('location')!r}", remedy)
            offset, length = (int(told.get(key, "0")) for key in ("offset", "length"))
            if offset < 0 or length < 0 or offset + length > n_bytes:
                problem = f"takes {length} bytes at {offset} of {weights}, which has {n_bytes}"
                raise BundleError(path, problem, remedy)
    except (ValueError, RecursionError) as error:
        raise BundleError(path, f"is no ONNX file ({error})", remedy) from None


def _external(message: bytes, kind: str, depth: int) -> Iterator[dict[str, str]]:
    """The entries `external_data` of each tensor in a message that says where its data are."""
    if depth > MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    if kind == "tensor":
        entries = [value for number, value in _fields(message) if number == EXTERNAL_DATA]
        told = [dict(_fields(entry)) for entry in entries]
        if told:
            yield {_text(entry, KEY): _text(entry, VALUE) for entry in told}
        return
    leads = INSIDE[kind]
    for number, value in _fields(message):
        if number in leads and LOCATION in value:  # the rest need not be taken apart
            yield from _external(value, leads[number], depth + 1)


def _text(entry: dict[int, bytes], number: int) -> str:
    return str(entry.get(number, b""), "utf-8")


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each field that has bytes; the others are passed over."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            _, at = _varint(message, at)
            continue
        n_bytes = {FIXED64: 8, FIXED32: 4}.get(wire)
        if wire == BYTES:
            n_bytes, at = _varint(message, at)
        if n_bytes is None or at + n_bytes > len(message):
            raise ValueError(f"it breaks off, or has the wire type {wire}")
        if wire == BYTES:
            yield number, message[at : at + n_bytes]
        at += n_bytes


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of up to ten bytes, and where the next one begins."""
    value = message[at] if at < len(message) else 0x80
    if value < 0x80:
        return value, at + 1
    value = 0
    for i, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    raise ValueError("it breaks off")
