"""Quantized weights: bytes of known meaning, properties, and a plain numpy form of each format."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge import _kernels
from edge.engines import formats
from edge.errors import CheckpointError

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
BF16 = np.dtype(ml_dtypes.bfloat16)
E2M1_VALUES = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6])
KINDS = ["normal", "zero blocks", "outlier", "tiny", "huge", "wide"]
PACKERS = [formats.pack_nvfp4, formats.pack_fp8, formats.pack_int4]


def weight(kind: str, dtype: Any, seed: int = 0, shape: tuple[int, int] = (6, 384)) -> NDArray[Any]:
    """A weight with one difficulty."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape) * 0.02
    if kind == "zero blocks":
        values[:, : shape[1] // 3] = 0
        values[1] = 0
    elif kind == "outlier":
        values[0, 5] = -300
    elif kind == "tiny":
        values *= 1e-37
    elif kind == "huge":
        values *= 3e38 / np.abs(values).max()
    elif kind == "wide":
        values *= np.exp(12 * rng.standard_normal(shape))
    return values.astype(np.float32).astype(dtype)


def e2m1_of(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The nearest code; of two equally near ones the even."""
    distance = np.abs(np.abs(values)[..., None].astype(np.float64) - E2M1_VALUES)
    even_first = [0, 2, 4, 6, 1, 3, 5, 7]
    code = np.take(even_first, distance[..., even_first].argmin(-1))
    return (code + 8 * (values < 0)).astype(np.uint8)


def plain_nvfp4(weight: NDArray[Any], scale: np.float32) -> tuple[NDArray[Any], NDArray[Any]]:
    groups = weight.astype(np.float32).reshape(len(weight), -1, 16)
    block_scale = np.abs(groups).max(-1) / (np.float32(6) * scale)
    block_scale[block_scale == 0] = 1
    block_scale = block_scale.clip(2**-9, 448).astype(E4M3)
    step = block_scale.astype(np.float32) * scale
    codes = e2m1_of(groups / step[..., None]).reshape(weight.shape)
    return codes[:, 0::2] | codes[:, 1::2] << 4, block_scale


def plain_fp8(weight: NDArray[Any], scale: np.float32) -> NDArray[Any]:
    quotient = (weight.astype(np.float32) / scale).astype(weight.dtype).astype(np.float32)
    return quotient.clip(-448, 448).astype(E4M3)


def plain_int4(weight: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    blocks = weight.astype(np.float32).reshape(len(weight), -1, 128)
    amax = np.abs(blocks).max(-1)
    scale = np.where(amax == 0, 7, np.maximum(amax, np.finfo(np.float32).tiny)) / np.float32(7)
    codes = np.rint(blocks / scale[..., None]).clip(-8, 7).astype(np.int8).reshape(weight.shape)
    return (codes[0::2] & 15 | codes[1::2] << 4).view(np.uint8), scale


@pytest.mark.parametrize("n_threads", [1, 3, 0])
@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("kind", KINDS)
def test_native_equals_plain(kind: str, dtype: Any, n_threads: int) -> None:
    values = weight(kind, dtype)
    amax = np.abs(values.astype(np.float32)).max()

    nvfp4 = formats.pack_nvfp4(values, n_threads=n_threads)
    assert nvfp4.scale == amax / np.float32(2688)
    codes, block_scale = plain_nvfp4(values, nvfp4.scale)
    np.testing.assert_array_equal(nvfp4.codes, codes)
    np.testing.assert_array_equal(nvfp4.block_scale.view(np.uint8), block_scale.view(np.uint8))

    fp8 = formats.pack_fp8(values, n_threads=n_threads)
    assert fp8.scale == amax / np.float32(448)
    np.testing.assert_array_equal(
        fp8.codes.view(np.uint8), plain_fp8(values, fp8.scale).view(np.uint8)
    )

    int4 = formats.pack_int4(values, n_threads=n_threads)
    codes, block_scale = plain_int4(values)
    np.testing.assert_array_equal(int4.codes, codes)
    np.testing.assert_array_equal(int4.block_scale, block_scale)


def test_ties_go_to_the_even_code() -> None:
    """All midpoints of E2M1 with their neighbours, at scales of one."""
    middle = np.float32([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5])
    points = np.concatenate([middle, np.nextafter(middle, 0), np.nextafter(middle, np.inf)])
    values = np.zeros((2, 32), np.float32)
    values[0, :21], values[1, :21] = points, -points
    values[:, 15::16] = 6  # so that every block's scale is 1
    packed = formats.pack_nvfp4(values, 1.0)
    assert (packed.block_scale == 1).all()
    np.testing.assert_array_equal(packed.codes, plain_nvfp4(values, np.float32(1))[0])
    assert formats.unpack_nvfp4(packed)[0, :7].tolist() == [0, 1, 1, 2, 2, 4, 4]


def test_the_published_example() -> None:
    codes = np.zeros((1, 16), np.uint8)
    codes[0, 0], codes[0, 8] = 0x21, 0xA3
    scales = np.uint8([[0x40, 0x38]]).view(E4M3)
    values = formats.unpack_nvfp4(formats.Nvfp4(codes, scales, np.float32(0.25)))
    assert values[0, [0, 1, 16, 17]].tolist() == [0.25, 0.5, 0.375, -0.25]
    assert not values[0, 2:16].any()


def test_every_byte_of_nvfp4() -> None:
    """Low half first; three bits of magnitude, then the sign."""
    codes = np.arange(256, dtype=np.uint8).reshape(1, 256)
    scales = np.ones((1, 32), np.float32).astype(E4M3)
    values = formats.unpack_nvfp4(formats.Nvfp4(codes, scales, np.float32(1)))
    table = np.concatenate([E2M1_VALUES, -E2M1_VALUES])
    np.testing.assert_array_equal(values[0, 0::2], table[codes[0] & 15])
    np.testing.assert_array_equal(values[0, 1::2], table[codes[0] >> 4])
    assert values[0, 2 * 0x21 : 2 * 0x21 + 2].tolist() == [0.5, 1.0]
    assert values[0, 2 * 0xA3 : 2 * 0xA3 + 2].tolist() == [1.5, -1.0]


def test_every_byte_of_int4() -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(1, 256)
    scales = np.float32([[1, 1], [1, 1]])
    values = formats.unpack_int4(formats.Int4(codes, scales))
    signed = np.concatenate([np.arange(8), np.arange(-8, 0)])
    np.testing.assert_array_equal(values, [signed[codes[0] & 15], signed[codes[0] >> 4]])


def test_every_code_of_e4m3() -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128)
    expected = codes.view(E4M3).astype(np.float32)
    values = formats.unpack_fp8(formats.Fp8(codes.view(E4M3), np.float32(1)))
    np.testing.assert_array_equal(values, expected)  # NaN equals NaN here
    finite = np.where(np.isnan(expected), 448, expected)  # 448 is the largest: the scale is 1
    packed = formats.pack_fp8(finite)
    assert packed.scale == 1
    np.testing.assert_array_equal(
        packed.codes.view(np.uint8)[~np.isnan(expected)], codes[~np.isnan(expected)]
    )


def test_rounding_to_e4m3() -> None:
    """Between every two neighbours: the middle, and what is next to it."""
    values = np.arange(0x7F, dtype=np.uint8).view(E4M3).astype(np.float32)
    middle = (values[1:] + values[:-1]) / 2
    points = np.concatenate([middle, np.nextafter(middle, 0), np.nextafter(middle, np.inf)])
    points = np.concatenate([points, -points, [448.0]]).astype(np.float32)[None]
    packed = formats.pack_fp8(points)
    np.testing.assert_array_equal(packed.codes.view(np.uint8), points.astype(E4M3).view(np.uint8))


@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS), wide=st.booleans())
def test_within_half_a_step(seed: int, kind: str, wide: bool) -> None:
    """What is read back is no farther than half the distance between neighbouring codes."""
    values = weight(kind, np.float32 if wide else BF16, seed, (4, 128))
    exact = values.astype(np.float64)
    magnitude = np.abs(exact)

    nvfp4 = formats.pack_nvfp4(values)
    step = np.repeat(nvfp4.block_scale.astype(np.float64), 16, axis=1) * float(nvfp4.scale)
    position = magnitude / step
    spacing = step * np.select([position < 2, position < 4], [0.5, 1.0], 2.0)
    # A block scale is rounded too, by up to 1/16 or 2^-10: its largest weight may lie beyond 6
    # steps, and is cut off there.
    beyond = np.maximum(magnitude - 6 * step, 0)
    error = np.abs(formats.unpack_nvfp4(nvfp4) - exact)
    assert (error <= np.maximum(spacing / 2, beyond) * (1 + 1e-6)).all()
    cut = np.maximum(magnitude / 16, 6 * 2**-10 * float(nvfp4.scale))
    assert (beyond <= cut * (1 + 1e-6)).all()

    fp8 = formats.pack_fp8(values)
    scale = float(fp8.scale)
    rounding = np.maximum(magnitude * 2**-4, scale * 2**-10)
    rounding += 0 if wide else magnitude * 2**-8  # bfloat16 is rounded before
    assert (np.abs(formats.unpack_fp8(fp8) - exact) <= rounding * (1 + 1e-6)).all()

    int4 = formats.pack_int4(values)
    step = np.repeat(int4.block_scale.astype(np.float64), 128, axis=1)
    assert (np.abs(formats.unpack_int4(int4) - exact) <= step / 2 * (1 + 1e-6)).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_a_given_scale(scale: float) -> None:
    """A scale that is shared with other tensors: too small ones saturate the block scales."""
    values = weight("outlier", np.float32)
    packed = formats.pack_nvfp4(values, scale)
    codes, block_scale = plain_nvfp4(values, np.float32(scale))
    assert packed.scale == np.float32(scale)
    np.testing.assert_array_equal(packed.codes, codes)
    np.testing.assert_array_equal(packed.block_scale.view(np.uint8), block_scale.view(np.uint8))


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_an_impossible_scale(scale: float) -> None:
    with pytest.raises(ValueError, match="scale_2 is"):
        formats.pack_nvfp4(weight("normal", np.float32), scale)


@pytest.mark.parametrize("size", [0.0, 1e-45])
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_nothing_but_zeros(dtype: Any, size: float) -> None:
    """Also where the tensor's scale would be zero: finite, and zero."""
    values = np.full((2, 128), size, np.float32).astype(dtype)
    nvfp4, fp8 = formats.pack_nvfp4(values), formats.pack_fp8(values)
    assert nvfp4.scale == fp8.scale == 1
    assert not formats.unpack_nvfp4(nvfp4).any()
    assert not formats.unpack_fp8(fp8).any()
    assert not formats.unpack_int4(formats.pack_int4(np.zeros((2, 128), dtype))).any()


@pytest.mark.parametrize("k", [16, 48, 1856, 2688])
def test_widths(k: int) -> None:
    """NVFP4 takes every multiple of 16, of one row as well."""
    values = weight("normal", BF16, shape=(1, k))
    packed = formats.pack_nvfp4(values)
    assert packed.codes.shape == (1, k // 2)
    assert packed.block_scale.shape == (1, k // 16)
    np.testing.assert_array_equal(packed.codes, plain_nvfp4(values, packed.scale)[0])


def test_views_and_read_only_weights() -> None:
    """A transposed weight is copied; a read-only one, as from a mapped file, is read in place."""
    values = weight("normal", BF16)
    values.flags.writeable = False
    column_major = np.asfortranarray(values)
    assert (
        formats.pack_nvfp4(values).codes.tolist() == formats.pack_nvfp4(column_major).codes.tolist()
    )
    packed = formats.pack_nvfp4(values)
    part = formats.Nvfp4(packed.codes[:, :16], packed.block_scale[:, :2], packed.scale)
    np.testing.assert_array_equal(formats.unpack_nvfp4(part), formats.unpack_nvfp4(packed)[:, :32])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("pack", PACKERS)
def test_nan_and_infinity(pack: Any, dtype: Any, bad: float) -> None:
    values = weight("normal", dtype)
    values[3, 100] = bad
    with pytest.raises(CheckpointError, match="up_proj: holds NaN or infinity"):
        pack(values, name="up_proj")


@pytest.mark.parametrize("pack", PACKERS)
def test_other_weights(pack: Any) -> None:
    with pytest.raises(CheckpointError, match="is float16"):
        pack(np.zeros((2, 128), np.float16))
    with pytest.raises(CheckpointError, match=r"has the shape \(128,\)"):
        pack(np.zeros(128, np.float32))


def test_sizes_that_a_format_cannot_have() -> None:
    with pytest.raises(CheckpointError, match="columns by 16"):
        formats.pack_nvfp4(np.zeros((2, 24), np.float32))
    with pytest.raises(CheckpointError, match="rows by 2 and columns by 128"):
        formats.pack_int4(np.zeros((2, 64), np.float32))
    with pytest.raises(CheckpointError, match="rows by 2 and columns by 128"):
        formats.pack_int4(np.zeros((3, 128), np.float32))


def test_the_kernels_check_their_arrays() -> None:
    values = np.zeros((2, 32), np.float32)
    codes, scales = np.zeros((2, 16), np.uint8), np.zeros((2, 2), np.uint8)
    with pytest.raises(ValueError, match="codes are not"):
        _kernels.pack_nvfp4(values, 1.0, codes[:1], scales, 1)
    with pytest.raises(ValueError, match="n_threads is negative"):
        _kernels.pack_nvfp4(values, 1.0, codes, scales, -1)
    with pytest.raises(TypeError):  # it would have to be copied
        _kernels.pack_nvfp4(values, 1.0, codes[:, ::2], scales, 1)
    with pytest.raises(TypeError):
        _kernels.pack_nvfp4(values.astype(np.float64), 1.0, codes, scales, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [1, 15, 16, 17, 40])
def test_an_interleaved_weight(n: int) -> None:
    """Byte by byte as documented, and back."""
    rng = np.random.default_rng(n)
    k = 48
    weight = formats.pack_nvfp4(rng.standard_normal((n, k)).astype(np.float32))
    ours = formats.interleave_nvfp4(weight)
    codes, scales = ours.codes.reshape(-1), ours.block_scale.reshape(-1)
    for row in range(n):
        tile = row // 16 * 16
        rows = min(16, n - tile)
        for column in range(k):
            group, half, low = column // 16, column % 16 // 8, column % 8 < 4
            at = tile * k // 2 + ((2 * group + half) * rows + row - tile) * 4 + column % 4
            plain = weight.codes[row, column // 2] >> 4 * (column % 2) & 15
            assert codes[at] >> (0 if low else 4) & 15 == plain
            at = tile * k // 16 + group * rows + row - tile
            assert scales[at] == weight.block_scale[row, group]
    back = formats.deinterleave_nvfp4(ours)
    np.testing.assert_array_equal(back.codes, weight.codes)
    np.testing.assert_array_equal(back.block_scale, weight.block_scale)
