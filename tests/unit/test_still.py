"""Pictures that clients send come out as viewers show them, and are judged before they decode."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from edge.errors import MediaError, ProtocolError
from edge.senses import still
from edge.senses.still import decode_picture, from_data_url, sound_of

WIDTH, HEIGHT = 48, 32
RED, GREEN, BLUE, WHITE = (220, 30, 40), (20, 180, 60), (40, 60, 200), (255, 255, 255)


def scene() -> Image.Image:
    """Four corners of four colours, so that each turn and mirror of it is another picture."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[: HEIGHT // 2, : WIDTH // 2] = RED
    pixels[: HEIGHT // 2, WIDTH // 2 :] = GREEN
    pixels[HEIGHT // 2 :, : WIDTH // 2] = BLUE
    pixels[HEIGHT // 2 :, WIDTH // 2 :] = WHITE
    return Image.fromarray(pixels)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def shown(data: bytes) -> NDArray[np.uint8]:
    picture = decode_picture(data)
    return np.frombuffer(picture.rgb, np.uint8).reshape(picture.height, picture.width, 3)


def corners(pixels: NDArray[np.uint8]) -> list[tuple[int, ...]]:
    return [tuple(int(v) for v in pixels[y, x]) for y in (6, -7) for x in (6, -7)]


def near(pixels: NDArray[np.uint8], colours: list[tuple[int, ...]], error: int) -> bool:
    return bool(np.abs(np.array(corners(pixels)) - np.array(colours)).max() <= error)


COLOURS = [RED, GREEN, BLUE, WHITE]
KINDS: dict[str, tuple[Callable[[], bytes], int]] = {
    "JPEG": (lambda: saved(scene(), "JPEG", quality=95), 3),
    "JPEG 4:4:4": (lambda: saved(scene(), "JPEG", quality=95, subsampling=0), 3),
    "JPEG 4:2:2": (lambda: saved(scene(), "JPEG", quality=95, subsampling=1), 3),
    "JPEG progressive": (lambda: saved(scene(), "JPEG", quality=95, progressive=True), 3),
    "JPEG of CMYK": (lambda: saved(scene().convert("CMYK"), "JPEG", quality=95), 6),
    "PNG": (lambda: saved(scene(), "PNG"), 0),
    "PNG with a palette": (lambda: saved(scene().quantize(4), "PNG"), 0),
    "PNG with opaque alpha": (lambda: saved(scene().convert("RGBA"), "PNG"), 0),
    "WebP": (lambda: saved(scene(), "WEBP", lossless=True), 0),
    "lossy WebP": (lambda: saved(scene(), "WEBP", quality=95), 8),
    "GIF": (lambda: saved(scene(), "GIF"), 0),
    "BMP": (lambda: saved(scene(), "BMP"), 0),
    "TIFF": (lambda: saved(scene(), "TIFF"), 0),
    "TIFF of LZW": (lambda: saved(scene(), "TIFF", compression="tiff_lzw"), 0),
    "TIFF of JPEG": (lambda: saved(scene(), "TIFF", compression="jpeg", quality=95), 4),
    "TIFF of CMYK": (lambda: saved(scene().convert("CMYK"), "TIFF"), 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str) -> None:
    make, error = KINDS[kind]
    pixels = shown(make())
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert near(pixels, COLOURS, error)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_model_sees_what_its_own_processor_sees(kind: str) -> None:
    """transformers and vLLM open pictures with Pillow, and convert them to RGB."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 80, 3)).astype(np.uint8)
    data = saved(Image.fromarray(noise), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(shown(data), expected)


@pytest.mark.parametrize("kind", ["L", "1", "LA", "I;16"])
def test_shades_of_grey(kind: str) -> None:
    grey = np.full((HEIGHT, WIDTH), 255, np.uint8)
    grey[:, : WIDTH // 2] = 0 if kind == "1" else 100
    image = Image.fromarray(grey.astype(np.uint16) * 257)
    if kind != "I;16":
        image = Image.fromarray(grey).convert(kind)
    dark = 0 if kind == "1" else 100
    assert corners(shown(saved(image, "PNG"))) == [(dark,) * 3, WHITE] * 2


def test_png_of_16_bits_a_colour_and_interlaced() -> None:
    """Written here: Pillow writes neither."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    pixels = np.asarray(scene()).astype(">u2") * 257
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
    rows = b""
    for y, x, dy, dx in [*passes, (1, 0, 2, 1)]:  # Adam7
        rows += b"".join(b"\0" + row.tobytes() for row in pixels[y::dy, x::dx])
    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 1)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(shown(data), np.asarray(scene()))


def test_what_is_transparent_is_on_white() -> None:
    clear = scene().convert("RGBA")
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[: HEIGHT // 2, : WIDTH // 2] = 0
    alpha[HEIGHT // 2 :, : WIDTH // 2] = 51  # a fifth
    clear.putalpha(Image.fromarray(alpha))
    fifth = tuple(round(255 + (colour - 255) / 5) for colour in BLUE)
    for kind in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        assert near(shown(saved(clear, kind, **options)), [WHITE, GREEN, fifth, WHITE], 1)
    index = saved(scene().quantize(4), "GIF", transparency=scene().quantize(4).getpixel((0, 0)))
    assert corners(shown(index))[0] == WHITE


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(scene(), kind, exif=exif.tobytes() if kind != "TIFF" else exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    turned = orientation > 4
    assert shown(data).shape == ((WIDTH, HEIGHT, 3) if turned else (HEIGHT, WIDTH, 3))
    # What EXIF 2.32 says of row 0 and column 0, with the corners in reading order.
    order = {
        1: [0, 1, 2, 3],
        2: [1, 0, 3, 2],
        3: [3, 2, 1, 0],
        4: [2, 3, 0, 1],
        5: [0, 2, 1, 3],
        6: [2, 0, 3, 1],
        7: [3, 1, 2, 0],
        8: [1, 3, 0, 2],
    }[orientation]
    assert near(shown(data), [COLOURS[corner] for corner in order], 60)
    assert upright is not None
    np.testing.assert_array_equal(shown(data), np.asarray(upright.convert("RGB")))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_broken_exif_is_no_broken_picture() -> None:
    data = saved(scene(), "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert near(shown(data), COLOURS, 3)


def test_the_first_picture_of_an_animation() -> None:
    other = Image.new("RGB", (WIDTH, HEIGHT), GREEN)
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = saved(scene(), kind, save_all=True, append_images=[other], **options)
        assert near(shown(data), COLOURS, 1)


def png_of(width: int, height: int) -> bytes:
    """A PNG of that size by its header, and with one row of it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    row = chunk(b"IDAT", zlib.compress(bytes(min(3 * width + 1, 100_000))))
    return b"\x89PNG\r\n\x1a\n" + head + row + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (png_of(16_000, 16_000), "16000x16000 pixels; scale it down"),
        (png_of(1 << 30, 1 << 30), "pixels; scale it down"),
        (png_of(0xFFFFFF, 9), "an aspect ratio|scale it down"),
        (png_of(2, 2), "2x2 pixels; give one of at least 8"),
        (
            saved(Image.new("1", (30_000, 30_000)), "TIFF", compression="group4"),
            "30000x30000 pixels",
        ),
        (saved(Image.new("L", (60_000, 8)), "JPEG"), "an aspect ratio of"),
    ],
    ids=["large", "huge", "long", "tiny", "TIFF", "JPEG"],
)
def test_the_size_is_judged_before_a_pixel_is_decoded(
    data: bytes, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(MediaError, match=problem):
        decode_picture(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_picture_is_one_clear_error(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 80, 3)).astype(np.uint8)
    data = saved(Image.fromarray(noise), kind)
    with pytest.raises(MediaError, match=r"^picture: cannot be decoded .*; encode it again$"):
        decode_picture(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"%PDF-1.7\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"\0\0\0\x18ftypheic\0\0\0\0",
        saved(scene(), "PPM"),
        saved(scene(), "ICO"),
    ],
    ids=["nothing", "PDF", "EPS", "SVG", "HEIC", "PPM", "ICO"],
)
def test_what_is_not_on_the_list_is_refused(data: bytes) -> None:
    with pytest.raises(MediaError, match="send JPEG, PNG, WEBP, GIF, BMP, TIFF"):
        decode_picture(data)


def test_samples_of_32_bits_are_refused() -> None:
    depth = Image.fromarray(np.linspace(0, 9, 64 * 64, dtype=np.float32).reshape(64, 64))
    with pytest.raises(MediaError, match="samples of 32 bits"):
        decode_picture(saved(depth, "TIFF"))


@pytest.mark.parametrize(
    ("size", "max_bytes", "said"),
    [
        ((7168, 7168), None, None),
        ((7169, 7168), None, "is 7169x7168 pixels; scale it down to at most 51380224 pixels"),
        ((8, 7), None, "is 8x7 pixels; give one of at least 8 pixels on each side"),
        ((10, 9), 270, None),
        ((10, 9), 269, "is 10x9 pixels, and there is room for 89 beside others; send fewer, or"),
        ((10, 9), 0, "is 10x9 pixels, and there is room for 0 beside others; send fewer, or"),
    ],
)
def test_a_picture_may_be_as_large_as_there_is_room(
    size: tuple[int, int], max_bytes: int | None, said: str | None
) -> None:
    if said is None:
        still._check_sent(*size, max_bytes)
        return
    with pytest.raises(MediaError) as caught:
        still._check_sent(*size, max_bytes)
    assert str(caught.value).startswith(f"image: {said}")


def test_what_a_library_says_of_damage_is_one_short_line() -> None:
    error = ValueError("first;\n  second " + 99 * "x")
    assert str(still._damaged("picture", error)) == (
        f"picture: cannot be decoded (first, second {86 * 'x'}); encode it again"
    )


@pytest.mark.parametrize("head", ["data:;base64", "data:image/png;base64", "DATA:;BASE64"])
def test_a_picture_may_come_in_its_address(head: str) -> None:
    assert from_data_url("url", f"{head},AA\nA=") == b"\0\0"
    with pytest.raises(ProtocolError, match=r"url: is not base64 .*; encode the bytes again"):
        from_data_url("url", f"{head},A")


@pytest.mark.parametrize(
    "url", ["data:image/png;base64", "data:image/png,AAA=", "http://a/b.png", "base64,AAA=", ""]
)
def test_no_other_address_is_followed(url: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        from_data_url("url", url, "sound")
    said = f"is {url!r}, not data:...;base64,...: the service fetches nothing"
    assert str(caught.value) == f"url: {said}; send the sound itself"


@pytest.mark.parametrize(
    ("n_samples", "said"),
    [
        (1600, None),
        (480_000, None),
        (0, "lasts 0 ms; send at least 100 ms"),
        (1599, "lasts 99 ms; send at least 100 ms"),
        (480_001, "lasts more than 30 s; send a shorter clip"),
    ],
)
def test_sound_lasts_from_a_tenth_of_a_second_to_thirty(n_samples: int, said: str | None) -> None:
    samples = np.full(n_samples, 0.5, np.float32)
    if said is None:
        assert sound_of(samples).samples == samples.tobytes()
        return
    with pytest.raises(MediaError) as caught:
        sound_of(samples)
    assert str(caught.value) == f"sound: {said}"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_sound_of_what_is_no_number_is_refused(value: float) -> None:
    samples = np.zeros(1600, np.float32)
    samples[-1] = value
    with pytest.raises(MediaError, match="sound: has a sample that is not finite; encode it again"):
        sound_of(samples)
