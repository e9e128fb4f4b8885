"""4-bit weights, decoded in registers on their way into a product.

NVFP4 (the order of a bundle: every 16 rows interleaved). As 32-bit words, the codes of 16 rows are
[k / 8][16 rows]: word g of a row holds columns 8g + c in the low half of byte c and 8g + 4 + c in
its high half. Their scales are [k / 16][16 rows] bytes.

    An E2M1 code s ee m, put at bits 15 and 11..9 of a float16, is its value * 2^-14, and E4M3 bits
    s eeee mmm at bits 15 and 13..7 are their value * 2^-8: no table, no conversion, subnormal
    codes included. A code times its scale has at most 6 significant bits, 2^-10 to 2688, so that
    with a suitable power of two the product is exact in a float16, too. (0x7F, NaN in E4M3, reads
    as 480: no packer writes it.)

INT4: a byte holds one column of two rows, the even row in the low half; two's complement.

    code + 8 as the last bits of a float16 with the exponent of 1024 is 1032 more than the code:
    one subtraction gives the exact integer. An integer-to-float conversion would run at a quarter
    of the rate.

What is left, the matrix's float32 scale and the powers of two above, is applied to float32 sums.
"""

import triton
import triton.language as tl

NVFP4_TILE_SCALE = tl.constexpr(2.0**7)
"""`nvfp4_tile` gives values / 2^7 (codes 2^-14, scales 2^-8 * 2^15)."""
NVFP4_ROWS_SCALE = tl.constexpr(2.0**22)
"""`nvfp4_rows` gives sums / 2^22 (codes 2^-14, scales 2^-8)."""


@triton.jit
def _two_codes(words):
    """The codes at bits 12..15 and 28..31 of words, as float16 * 2^-14: (lower, upper)."""
    bits = (words & 0x80008000) | ((words >> 3) & 0x0E000E00)
    low = (bits & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True)
    high = (bits >> 16).to(tl.uint16).to(tl.float16, bitcast=True)
    return low, high


@triton.jit
def _e4m3(codes):
    """E4M3 bytes as float16 * 2^-8."""
    wide = codes.to(tl.uint16)
    return (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.float16, bitcast=True)


@triton.jit
def _eight_products(words, x, inside):
    """Eight codes of each word, * 2^-14, times eight values of x, added up in float32."""
    c5, c7 = _two_codes(words)
    c1, c3 = _two_codes(words << 4)
    c4, c6 = _two_codes(words << 8)
    c0, c2 = _two_codes(words << 12)
    total = c0.to(tl.float32) * tl.load(x, mask=inside, other=0).to(tl.float32)
    total += c1.to(tl.float32) * tl.load(x + 1, mask=inside, other=0).to(tl.float32)
    total += c2.to(tl.float32) * tl.load(x + 2, mask=inside, other=0).to(tl.float32)
    total += c3.to(tl.float32) * tl.load(x + 3, mask=inside, other=0).to(tl.float32)
    total += c4.to(tl.float32) * tl.load(x + 4, mask=inside, other=0).to(tl.float32)
    total += c5.to(tl.float32) * tl.load(x + 5, mask=inside, other=0).to(tl.float32)
    total += c6.to(tl.float32) * tl.load(x + 6, mask=inside, other=0).to(tl.float32)
    total += c7.to(tl.float32) * tl.load(x + 7, mask=inside, other=0).to(tl.float32)
    return total


@triton.jit
def nvfp4_rows(codes, block_scale, x, row, k, GROUPS: tl.constexpr):
    """Products of 16 rows with one vector, in float32: [16], to be multiplied by 2^22 * scale.

    Args:
        codes: uint32 words of one matrix; block_scale: its E4M3 bytes.
        x: [k] float16 or float32.
        row: the first row, a multiple of 16.
        k: columns, a multiple of 16.
        GROUPS: how many groups of 16 columns are taken at a time.
    """
    r = tl.arange(0, 16)[:, None]
    groups = k // 16
    codes += row * 2 * groups
    block_scale += row * groups
    total = tl.zeros([16, GROUPS], tl.float32)
    for start in range(0, groups, GROUPS):
        g = start + tl.arange(0, GROUPS)[None, :]
        inside = g < groups
        low = tl.load(codes + g * 32 + r, mask=inside, other=0)
        high = tl.load(codes + g * 32 + 16 + r, mask=inside, other=0)
        scale = tl.load(block_scale + g * 16 + r, mask=inside, other=0)
        part = _eight_products(low, x + g * 16, inside)
        part += _eight_products(high, x + g * 16 + 8, inside)
        total += part * _e4m3(scale).to(tl.float32)
    return tl.sum(total, 1)


@triton.jit
def _two_int4(words):
    """The codes at bits 0..3 and 16..19 of words, as float16: (lower, upper)."""
    bits = (words & 0x000F000F) ^ 0x64086408
    low = (bits & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True) - 1032.0
    high = (bits >> 16).to(tl.uint16).to(tl.float16, bitcast=True) - 1032.0
    return low, high


@triton.jit
def int4_rows(codes, block_scale, x, row, k, BLOCKS: tl.constexpr):
    """Products of 16 rows with one vector, in float32: [16].

    Args:
        codes: uint32 words of one matrix; block_scale: its float32 scales.
        x, row: as `nvfp4_rows`.
        k: columns, a multiple of 128.
        BLOCKS: how many blocks of 128 columns are taken at a time.
    """
    pair = row // 2 + tl.arange(0, 8)[:, None]
    blocks = k // 128
    even = tl.zeros([8, BLOCKS * 32], tl.float32)
    odd = tl.zeros([8, BLOCKS * 32], tl.float32)
    for start in range(0, blocks, BLOCKS):
        w = start * 32 + tl.arange(0, BLOCKS * 32)[None, :]
        inside = w < blocks * 32
        bits = tl.load(codes + pair * (blocks * 32) + w, mask=inside, other=0)
        e0, e2 = _two_int4(bits)
        o0, o2 = _two_int4(bits >> 4)
        e1, e3 = _two_int4(bits >> 8)
        o1, o3 = _two_int4(bits >> 12)
        x0 = tl.load(x + w * 4, mask=inside, other=0).to(tl.float32)
        x1 = tl.load(x + w * 4 + 1, mask=inside, other=0).to(tl.float32)
        x2 = tl.load(x + w * 4 + 2, mask=inside, other=0).to(tl.float32)
        x3 = tl.load(x + w * 4 + 3, mask=inside, other=0).to(tl.float32)
        scale = block_scale + pair * 2 * blocks + w // 32
        even_scale = tl.load(scale, mask=inside, other=0)
        odd_scale = tl.load(scale + blocks, mask=inside, other=0)
        part = e0.to(tl.float32) * x0 + e1.to(tl.float32) * x1
        part += e2.to(tl.float32) * x2 + e3.to(tl.float32) * x3
        even += part * even_scale
        part = o0.to(tl.float32) * x0 + o1.to(tl.float32) * x1
        part += o2.to(tl.float32) * x2 + o3.to(tl.float32) * x3
        odd += part * odd_scale
    return tl.reshape(tl.join(tl.sum(even, 1), tl.sum(odd, 1)), [16])


@triton.jit
def nvfp4_tile(codes, block_scale, row, start, n, k, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows and columns of a matrix as exact float16 values / 2^7; zeros outside it.

    Args:
        codes, block_scale: as `nvfp4_rows`.
        row, start: the first row and column, multiples of 16 and 8.
        n, k: the matrix's rows and columns.

    Returns:
        float16 [ROWS, COLUMNS].
    """
    rows = row + tl.arange(0, ROWS)[:, None]
    words = start // 8 + tl.arange(0, COLUMNS // 8)[None, :]
    inside = (rows < n) & (words < k // 8)
    first, r = rows // 16 * 16, rows % 16
    bits = tl.load(codes + first * (k // 8) + words * 16 + r, mask=inside, other=0)
    scale = tl.load(block_scale + first * (k // 16) + words // 2 * 16 + r, mask=inside, other=0)
    scale = _e4m3(scale) * 32768.0
    c5, c7 = _two_codes(bits)
    c1, c3 = _two_codes(bits << 4)
    c4, c6 = _two_codes(bits << 8)
    c0, c2 = _two_codes(bits << 12)
    # A join adds the least significant digit of the column's number.
    even = tl.join(tl.join(c0 * scale, c4 * scale), tl.join(c2 * scale, c6 * scale))
    odd = tl.join(tl.join(c1 * scale, c5 * scale), tl.join(c3 * scale, c7 * scale))
    return tl.reshape(tl.join(even, odd), [ROWS, COLUMNS])


@triton.jit
def int4_tile(codes, row, start, n, k, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows and columns of a matrix's codes as exact float16 integers; zeros outside it.

    Args:
        codes: as `int4_rows`.
        row, start: the first row and column, even and a multiple of 4.
        n, k: the matrix's rows and columns.

    Returns:
        float16 [ROWS, COLUMNS].
    """
    pair = row // 2 + tl.arange(0, ROWS // 2)[:, None]
    words = start // 4 + tl.arange(0, COLUMNS // 4)[None, :]
    inside = (pair < n // 2) & (words < k // 4)
    bits = tl.load(codes + pair * (k // 4) + words, mask=inside, other=0)
    e0, e2 = _two_int4(bits)
    o0, o2 = _two_int4(bits >> 4)
    e1, e3 = _two_int4(bits >> 8)
    o1, o3 = _two_int4(bits >> 12)
    # A join adds the least significant digit of the column's number.
    even = tl.reshape(tl.join(tl.join(e0, e2), tl.join(e1, e3)), [ROWS // 2, COLUMNS])
    odd = tl.reshape(tl.join(tl.join(o0, o2), tl.join(o1, o3)), [ROWS // 2, COLUMNS])
    return tl.reshape(tl.permute(tl.join(even, odd), [0, 2, 1]), [ROWS, COLUMNS])
