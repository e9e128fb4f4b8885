"""selfcheck.npz: the arrays in it, each of the dtype and shape that the model's sizes mean.

It is a zip file. What a builder writes is not compressed, so nothing in it is larger than it is.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge.engines.engine import MAX_AUDIO_FRAMES
from edge.errors import BundleError
from edge.files import open_regular
from edge.model.spec import ModelSpec, VisionSpec

MAX_BYTES = 1 << 28
"""Of the file. That of the published sizes has 10 MB."""
MAX_ROWS = 1 << 12
SMALLEST_VIDEO = 4
"""Plans take tubelets with this part of a full one's patches, and more."""
NPY = ".npy"
NEEDED = (
    *("input.image", "input.tubelets", "input.mel", "input.ids"),
    *("output.image", "output.tubelets", "output.audio", "output.logits"),
)
"""What a start compares; an older builder's has no more."""

Shape: TypeAlias = tuple[int | None, ...]
"""None: any number from 1."""


def check_grid(vision: VisionSpec) -> tuple[int, int]:
    """Rows and columns of the patches that are shown: not square, small, and within every plan."""
    side = 2 * math.ceil(math.sqrt(vision.video_target_patches / SMALLEST_VIDEO) / 2)
    return max(side, 4), max(side, 4) + 2


def check_arrays(path: Path, spec: ModelSpec, remedy: str) -> None:
    """Look at the arrays of a bundle's self-check without reading them.

    Raises:
        BundleError: one is missing, unknown, compressed, or of another dtype or shape.
    """
    _opened(path, spec, remedy, read=False)


def read_arrays(path: Path, spec: ModelSpec, remedy: str) -> Mapping[str, NDArray[Any]]:
    """The arrays of a bundle's self-check, by name.

    Raises:
        BundleError: as `check_arrays`, or it asks for tokens that the model has not.
    """
    arrays = _opened(path, spec, remedy, read=True)
    for name in ("input.ids", "output.greedy"):
        ids = arrays.get(name, np.zeros(1, np.int32))
        if not 0 <= ids.min() <= ids.max() < spec.decoder.vocab_size:
            problem = f"has {name} from {ids.min()} to {ids.max()}"
            raise BundleError(path, f"{problem} of {spec.decoder.vocab_size} tokens", remedy)
    return arrays


def _expected(spec: ModelSpec) -> dict[str, tuple[type[np.generic], Shape]]:
    vision, hidden, vocab = spec.vision, spec.decoder.hidden_size, spec.decoder.vocab_size
    n_patches, n_features = math.prod(check_grid(vision)), 3 * vision.patch_size**2
    n_tokens = n_patches // vision.merge**2
    shapes: dict[str, Shape] = {
        "input.image": (n_patches, n_features),
        "input.tubelets": (None, n_patches, vision.tubelet_frames * n_features),
        "input.mel": (None, spec.audio.n_mels),
        "input.ids": (None,),
        "output.image": (n_tokens, hidden),
        "output.tubelets": (None, n_tokens, hidden),
        "output.audio": (None, hidden),
        "output.logits": (None, vocab),
        "output.restored": (None, vocab),
        "output.greedy": (None,),
        "output.shortfall": (None,),
    }
    whole = ("input.ids", "output.greedy")
    return {n: (np.int32 if n in whole else np.float32, shape) for n, shape in shapes.items()}


def _opened(path: Path, spec: ModelSpec, remedy: str, *, read: bool) -> dict[str, NDArray[Any]]:
    """The arrays; none where they are not read."""
    expected = _expected(spec)
    shapes: dict[str, tuple[int, ...]] = {}
    arrays = {}
    try:
        with open_regular(path, follow=False) as file, zipfile.ZipFile(file) as members:
            if sum(member.file_size for member in members.infolist()) > MAX_BYTES:
                raise ValueError(f"it holds more than {MAX_BYTES} bytes")
            for member in members.infolist():
                name = member.filename.removesuffix(NPY)
                if name not in expected or not member.filename.endswith(NPY) or name in shapes:
                    raise ValueError(f"it holds {member.filename!r}, once more or unknown")
                if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                    raise ValueError(f"{name} is compressed")
                with members.open(member) as array:
                    dtype, shapes[name] = _header(array)  # type: ignore[arg-type]
                    _require(name, dtype, shapes[name], *expected[name])
                    if read:
                        size = math.prod(shapes[name]) * dtype.itemsize
                        content = array.read(size + 1)
                        if len(content) != size:
                            raise ValueError(f"{name} has {len(content)} bytes, not {size}")
                        arrays[name] = np.frombuffer(content, dtype).reshape(shapes[name])
        missing = [name for name in NEEDED if name not in shapes]
        if missing:
            raise ValueError(f"it lacks {missing[0]}")
        _require_together(shapes)
    except OSError as error:
        raise BundleError(path, f"cannot be read ({error.strerror or error})", remedy) from None
    # zipfile's word for what it does not know is NotImplementedError, which is a RuntimeError
    except (ValueError, zipfile.BadZipFile, EOFError, RuntimeError) as error:
        raise BundleError(path, f"is no self-check ({error})", remedy) from None
    return arrays


def _header(file: BinaryIO) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """What stands before an array's values.

    Raises:
        ValueError: it is of another version than a builder writes, or in another order.
    """
    if np.lib.format.read_magic(file) != (1, 0):  # type: ignore[no-untyped-call]
        raise ValueError("an array is of another version")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)  # type: ignore[no-untyped-call]
    if is_fortran and len(shape) > 1:
        raise ValueError("an array lies column by column")
    return dtype, shape


def _require(
    name: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    expected: type[np.generic],
    sizes: Shape,
) -> None:
    fits = len(shape) == len(sizes) and all(
        n == size if size is not None else 1 <= n <= MAX_ROWS
        for n, size in zip(shape, sizes, strict=False)
    )
    if dtype != np.dtype(expected) or not fits:
        wanted = ", ".join("n" if size is None else str(size) for size in sizes)
        meant = f"{np.dtype(expected)} ({wanted})"
        raise ValueError(f"{name} is {dtype} {shape}, the manifest means {meant}")


def _require_together(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """See that what is compared with each other can be."""
    n_decoded = shapes["output.logits"][0] - 1
    for name, is_right in (
        ("output.tubelets", shapes["output.tubelets"][0] == shapes["input.tubelets"][0]),
        ("input.mel", shapes["input.mel"][0] <= MAX_AUDIO_FRAMES),
        ("output.audio", shapes["output.audio"][0] <= shapes["input.mel"][0]),
        ("output.logits", n_decoded <= shapes["input.ids"][0]),
        ("output.restored", shapes.get("output.restored", (n_decoded,))[0] == n_decoded),
        (
            "output.shortfall",
            shapes.get("output.shortfall") in (None, shapes.get("output.greedy")),
        ),
    ):
        if not is_right:
            raise ValueError(f"{name} has the shape {shapes.get(name)}")
