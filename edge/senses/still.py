"""Pictures and sounds in memory, as clients send them: decoded from named formats only.

Pillow decodes pictures: it knows their size before it decodes them. Of its formats those are left
out that are programs (EPS) or documents (PDF).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import re
import struct
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from edge.errors import MediaError, ProtocolError
from edge.features.pixels import check_size
from edge.model.spec import SAMPLE_RATE_HZ
from edge.senses.clip import decode_audio
from edge.types import Float32, Picture, Sound

MAX_SOUND_S = 30
"""Of one clip: a longer one is no question."""
_PICTURES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PICTURE_PIXELS = 49 << 20
"""Of a picture that is sent: telephones make 50 million. The largest takes 150 MB, and more for a
moment, in a process of its own."""
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_BROKEN: tuple[type[Exception], ...] = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, struct.error, zlib.error),
)
"""What Pillow raises about damaged files."""
_ORIENTATION, _LONG = 0x0112, 4
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
Image.MAX_IMAGE_PIXELS = None  # `check_size` has a lower bound, and comes before decoding


def from_base64(field: str, text: str) -> bytes:
    """What the text encodes.

    Raises:
        ProtocolError: it is not base64; the error's thing is `field`.
    """
    try:
        return base64.b64decode("".join(text.split()), validate=True)  # some encoders break lines
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(field, f"is not base64 ({error})", "encode the bytes again") from None


def from_data_url(field: str, url: str, what: str = "picture") -> bytes:
    """What a data: URL holds. Others would be fetched, and nothing here goes to the network.

    Args:
        what: it should hold, for the error.
    Raises:
        ProtocolError: it is no such URL.
    """
    head, found, text = url.partition(",")
    if not found or not re.fullmatch(r"data:[^,]*;base64", head, re.IGNORECASE):
        problem = f"is {url[:40]!r}, not data:...;base64,...: the service fetches nothing"
        remedy = f"send the {what} itself"
        raise ProtocolError(field, problem, remedy)
    return from_base64(field, text)


def decode_picture(data: bytes, max_bytes: int | None = None) -> Picture:
    """The first picture of a JPEG, PNG, WebP, GIF, BMP or TIFF file, as viewers show it: upright,
    and what is transparent on white.

    Args:
        max_bytes: that it may take.
    Raises:
        MediaError: it is no such file, or damaged or cut short, or of an unusable size; that is
            known before a pixel is decoded.
    Source: vLLM `multimodal/media/image.py` (EXIF's orientation, white behind transparency) and
        transformers `convert_to_rgb`, so that the model sees the same colours.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_PICTURES) as opened:
            _check_sent(*opened.size, max_bytes)
            opened.load()
            pixels = _rgb(_upright(opened))
    except UnidentifiedImageError as error:
        if data.startswith(_MAGIC):
            raise _damaged("picture", ValueError("its header is damaged")) from error
        problem = f"begins with {data[:8]!r}"
        raise MediaError("picture", problem, f"send {', '.join(_PICTURES)}") from None
    except MemoryError as error:
        raise _damaged("picture", error) from None
    except _BROKEN as error:
        raise _damaged("picture", error) from None
    return Picture(pixels.tobytes(), pixels.width, pixels.height)


def _check_sent(width: int, height: int, max_bytes: int | None) -> None:
    check_size(width, height)
    if width * height > MAX_PICTURE_PIXELS:
        remedy = f"scale it down to at most {MAX_PICTURE_PIXELS} pixels"
        raise MediaError("image", f"is {width}x{height} pixels", remedy)
    if max_bytes is not None and 3 * width * height > max_bytes:
        problem = (
            f"is {width}x{height} pixels, and there is room for {max_bytes // 3} beside others"
        )
        raise MediaError("image", problem, "send fewer, or smaller ones")


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    """As EXIF says the camera was held, or else XMP.

    Source: Pillow's `exif_transpose`. That reads every tag of EXIF, which may all be as long as the
    whole, and writes all of it again.
    """
    turn = None
    with contextlib.suppress(*_BROKEN):  # only the notes beside the picture are
        turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    if isinstance(image, TiffImageFile):
        return int(image.tag_v2.get(_ORIENTATION, 1))
    exif: bytes = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is not None:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (n_tags,) = struct.unpack_from(order + "H", exif, start)
        for at in range(start + 2, min(start + 2 + 12 * n_tags, len(exif) - 11), 12):
            tag, kind = struct.unpack_from(order + "HH", exif, at)
            if tag == _ORIENTATION:
                (value,) = struct.unpack_from(order + ("I" if kind == _LONG else "H"), exif, at + 8)
                return int(value)
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
    found = _XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else xmp)
    return int(found[1]) if found else 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):  # depth maps and measurements: nobody knows which value is white
        raise ValueError(f"has samples of 32 bits ({image.mode})")
    if image.mode.startswith("I;16"):  # Pillow would cut off all above 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        shown = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", shown.size, "white")
        white.paste(shown, mask=shown.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def decode_sound(data: bytes) -> Sound:
    """A sound file, or a film's sound track, of at most `MAX_SOUND_S` seconds.

    Raises:
        MediaError: it is none, or damaged throughout or cut short, or too long.
    """
    return sound_of(decode_audio(data, MAX_SOUND_S))


def pcm_samples(data: bytes) -> Float32:
    """PCM of 16 bits, little-endian, as float32 [n, 1], -1..1.

    Raises:
        ProtocolError: half a sample is left.
    """
    if len(data) % 2:
        raise ProtocolError("audio", f"has {len(data)} bytes", "send whole samples of 2 bytes")
    samples = np.frombuffer(data, "<i2").astype(np.float32) / np.float32(1 << 15)
    return samples[:, None]


def sound_of(samples: Float32) -> Sound:
    """Samples [n], 16 kHz, as a message has them.

    Raises:
        MediaError: they are too few or too many, or one of them is not a finite number.
    """
    check_length(len(samples), SAMPLE_RATE_HZ)
    if len(samples) < SAMPLE_RATE_HZ // 10:
        n_ms = len(samples) * 1000 // SAMPLE_RATE_HZ
        raise MediaError("sound", f"lasts {n_ms} ms", "send at least 100 ms")
    if not np.isfinite(samples).all():
        raise MediaError("sound", "has a sample that is not finite", "encode it again")
    return Sound(np.ascontiguousarray(samples, np.float32).tobytes())


def check_length(n_samples: int, rate_hz: int) -> None:
    """Refuse what is too long.

    Raises:
        MediaError: it lasts more than `MAX_SOUND_S` seconds.
    """
    if n_samples > MAX_SOUND_S * rate_hz:
        raise MediaError("sound", f"lasts more than {MAX_SOUND_S} s", "send a shorter clip")


def _damaged(what: str, error: Exception) -> MediaError:
    line = " ".join(str(error).split()).replace(";", ",")[:100]
    return MediaError(what, f"cannot be decoded ({line})", "encode it again")
