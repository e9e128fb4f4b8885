"""Camera frames become patches, and tubelets are compared, without leaving the GPU.

Equal to edge/features: pixels.py's `image_patches` and evs.py's dissimilarity.
"""

import triton
import triton.language as tl


@triton.jit
def _rgb(luma, blue, red):
    """ITU-R BT.601, limited range: its factors * 2^20 as integers, rounded; 0..255.

    The integers that OpenCV's NV12 conversion uses, so that both cameras' paths agree to the bit.
    """
    y = tl.maximum(luma.to(tl.int32) - 16, 0) * 1220542 + (1 << 19)
    u, v = blue.to(tl.int32) - 128, red.to(tl.int32) - 128
    r = (y + 1673527 * v) >> 20
    g = (y - 852492 * v - 409993 * u) >> 20
    b = (y + 2116026 * u) >> 20
    return (
        tl.minimum(tl.maximum(r, 0), 255).to(tl.float32),
        tl.minimum(tl.maximum(g, 0), 255).to(tl.float32),
        tl.minimum(tl.maximum(b, 0), 255).to(tl.float32),
    )


@triton.jit
def resize_width(
    pixels, chroma, first, weights, row_bytes, chroma_row_bytes, n_rows, n_columns, n_taps, planes,
    NV12: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each row resized: planes[c, y, x] = sum over t of weights[x, t] * pixels[y, first[x] + t, c].

    Grid: (ceil(n_columns / BLOCK), n_rows).

    Args:
        pixels: uint8 rows of RGB, or of luma for NV12, row_bytes apart.
        chroma: uint8 rows of NV12's blue and red differences, one row for two; RGB ignores it.
        first, weights: int32 [n_columns], float32 [n_columns, n_taps]: `pixels.bicubic_axis`.
        planes: float32 [3, n_rows, n_columns].
    """
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = tl.program_id(1)
    inside = x < n_columns
    begin = tl.load(first + x, mask=inside, other=0)
    red, green, blue = (
        tl.zeros([BLOCK], tl.float32),
        tl.zeros([BLOCK], tl.float32),
        tl.zeros([BLOCK], tl.float32),
    )
    for t in range(n_taps):
        weight = tl.load(weights + x * n_taps + t, mask=inside, other=0)
        at = begin + t
        if NV12:
            luma = tl.load(pixels + y * row_bytes + at, mask=inside, other=0)
            pair = chroma + y // 2 * chroma_row_bytes + at // 2 * 2
            u = tl.load(pair, mask=inside, other=0)
            v = tl.load(pair + 1, mask=inside, other=0)
            r, g, b = _rgb(luma, u, v)
        else:
            pixel = pixels + y * row_bytes + at * 3
            r = tl.load(pixel, mask=inside, other=0).to(tl.float32)
            g = tl.load(pixel + 1, mask=inside, other=0).to(tl.float32)
            b = tl.load(pixel + 2, mask=inside, other=0).to(tl.float32)
        red += weight * r
        green += weight * g
        blue += weight * b
    to = planes + y * n_columns + x
    plane = n_rows * n_columns
    tl.store(to, red, mask=inside)
    tl.store(to + plane, green, mask=inside)
    tl.store(to + 2 * plane, blue, mask=inside)


@triton.jit
def patchify(
    planes, first, weights, gain, offset, n_rows, n_columns, n_taps, side, stride, patches,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Columns resized as `resize_width` resizes rows, then gain * value + offset, into patches.

    Grid: (ceil(n_columns / BLOCK), rows of the resized picture, 3).

    Bound: float16 rounds once, 2^-11 of the value; before that float32 differs from the CPU kernel
    by the order of its roundings alone (a product and its addition round once here): with taps a
    and b of the two axes, (a + b + 4) * 2^-24 * sum |weights pixels| * gain, below 1e-5.

    Args:
        planes: of `resize_width`, n_rows input rows.
        first, weights: int32 and float32 [rows], [rows, n_taps] of the other axis.
        gain, offset: float32 [3].
        side: of a patch, pixels.
        stride: values from one patch to the next; more than 3 * side^2 where frames of a tubelet
            share a row.
        patches: float16, features ordered (channel, y, x).
    """
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y, channel = tl.program_id(1), tl.program_id(2)
    inside = x < n_columns
    begin = tl.load(first + y)
    total = tl.zeros([BLOCK], tl.float32)
    for t in range(n_taps):
        at = planes + (channel * n_rows + begin + t) * n_columns + x
        total += tl.load(weights + y * n_taps + t) * tl.load(at, mask=inside, other=0)
    value = total * tl.load(gain + channel) + tl.load(offset + channel)
    patch = y // side * (n_columns // side) + x // side
    to = patches + patch * stride + (channel * side + y % side) * side + x % side
    tl.store(to, value.to(tl.float16), mask=inside)


@triton.jit
def dissimilarity(tubelet, before, n, result, BLOCK: tl.constexpr):
    """1 - cosine similarity of each place with the same place one tubelet before; exactly 0 where
    both are the same, so that a still picture gives ties.

    The three sums go through the same operations, so that equal vectors have equal sums, and the
    root and the quotient are rounded correctly: the root of a square gives the number back.
    Grid: (places).

    Bound: a sum has at most ceil(n / BLOCK) + log2(BLOCK) + 2 =: r roundings one upon the other,
    so that the cosine errs by at most (2 r + 4) * 2^-24, and 1 - cosine by 2^-24 more.

    Args:
        tubelet, before: [places, n] float16, as the decoder sees them.
        n: hidden size.
        result: [places] float32, 0 to 2.
    """
    place = tl.program_id(0).to(tl.int64)
    dots = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    squares_before = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        a = tl.load(tubelet + place * n + i, mask=i < n, other=0).to(tl.float32)
        b = tl.load(before + place * n + i, mask=i < n, other=0).to(tl.float32)
        dots += a * b
        squares += a * a
        squares_before += b * b
    aa = tl.maximum(tl.sum(squares, 0), 1e-16)  # the square of evs.py's smallest norm
    bb = tl.maximum(tl.sum(squares_before, 0), 1e-16)
    tl.store(result + place, 1.0 - tl.div_rn(tl.sum(dots, 0), tl.sqrt_rn(aa * bb)))
