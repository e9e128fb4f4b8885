// Sixteen floats in an AVX-512 register. Same names as in vector_avx2.h, where more is said.

using F32 = __m512;
constexpr size_t LANES = 16, PARTS = 16 / LANES;
struct Sixteen {
    F32 part[PARTS];
};
constexpr size_t TILE_ROWS = 6, PANEL_ROWS = 16;

INLINE F32 load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void store(float *p, F32 x) { _mm512_storeu_ps(p, x); }
INLINE F32 splat(float x) { return _mm512_set1_ps(x); }
INLINE F32 zero() { return _mm512_setzero_ps(); }
INLINE F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
INLINE F32 max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
INLINE F32 min(F32 a, F32 b) { return _mm512_min_ps(a, b); }
INLINE F32 magnitude(F32 x) { return _mm512_abs_ps(x); }
INLINE F32 nearest(F32 x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE F32 square_root(F32 x) { return _mm512_sqrt_ps(x); }

// x * 2^n for whole n in -126..127, as float.
INLINE F32 times_power_of_two(F32 x, F32 n) { return _mm512_scalef_ps(x, n); }

INLINE __m256 halves_sum(F32 x) {
    return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
}

INLINE float sum(F32 x) {
    __m256 half = halves_sum(x);
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// Four sums at once, into or onto `to`.
INLINE void add_sums(F32 a, F32 b, F32 c, F32 d, bool add, float *to) {
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(halves_sum(a), halves_sum(b)),
                              _mm256_hadd_ps(halves_sum(c), halves_sum(d)));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    _mm_storeu_ps(to, add ? _mm_add_ps(four, _mm_loadu_ps(to)) : four);
}

INLINE __m256i load_half(const void *p) {
    return _mm256_loadu_si256(static_cast<const __m256i *>(p));
}
INLINE __m128i load_quarter(const void *p) {
    return _mm_loadu_si128(static_cast<const __m128i *>(p));
}
INLINE __m512i load_bytes(const void *p) { return _mm512_loadu_si512(p); }

INLINE F32 load_bfloat16(const uint8_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_half(p)), 16));
}

// The halves of the bfloat16 that has the value of each E4M3 code without its sign, NaN included.
struct E4m3Tables {
    alignas(64) uint8_t low[128], high[128];
    // Where each of 64 codes must stand so that `load_e4m3` leaves them in their order.
    alignas(64) uint8_t order[64];
    constexpr E4m3Tables() : low(), high(), order() {
        for (int code = 0; code < 128; code++) {
            int exponent = (code >> 3) + 120, mantissa = code & 7;
            for (; code < 8 && mantissa > 0 && mantissa < 8; exponent--) mantissa *= 2;
            if (code < 8) exponent++, mantissa &= 7;  // the leading bit is the hidden one now
            int bits = code == 0 ? 0 : code == 0x7f ? 0x7fc0 : exponent << 7 | mantissa << 4;
            low[code] = static_cast<uint8_t>(bits);
            high[code] = static_cast<uint8_t>(bits >> 8);
        }
        for (int at = 0; at < 64; at++)
            order[at] = static_cast<uint8_t>(16 * (at / 8 % 2 * 2 + at % 2) + 4 * (at / 16) +
                                             at % 8 / 2);
    }
};
inline constexpr E4m3Tables E4M3_TABLES;

// 64 E4M3 codes.
INLINE void load_e4m3(__m512i codes, F32 (&values)[4]) {
    const uint8_t *low_table = E4M3_TABLES.low, *high_table = E4M3_TABLES.high;
    codes = _mm512_permutexvar_epi8(load_bytes(E4M3_TABLES.order), codes);
    __m512i low = _mm512_permutex2var_epi8(load_bytes(low_table), codes, load_bytes(low_table + 64));
    __m512i high =
        _mm512_permutex2var_epi8(load_bytes(high_table), codes, load_bytes(high_table + 64));
    high = _mm512_ternarylogic_epi32(high, codes, _mm512_set1_epi8(-0x80), 0xf8);  // with the sign
    const __m512i odd = _mm512_set1_epi32(-0x10000);
    __m512i first = _mm512_unpacklo_epi8(low, high), second = _mm512_unpackhi_epi8(low, high);
    values[0] = _mm512_castsi512_ps(_mm512_slli_epi32(first, 16));
    values[1] = _mm512_castsi512_ps(_mm512_and_si512(first, odd));
    values[2] = _mm512_castsi512_ps(_mm512_slli_epi32(second, 16));
    values[3] = _mm512_castsi512_ps(_mm512_and_si512(second, odd));
}

INLINE Sixteen load_e4m3(const uint8_t *p) {
    __m256i codes = _mm256_cvtepi8_epi16(load_quarter(p)), size = _mm256_set1_epi16(0x3f80);
    __m256i half = _mm256_and_si256(_mm256_slli_epi16(codes, 7), _mm256_set1_epi16(-0x4001));
    half = _mm256_or_si256(half, _mm256_cmpeq_epi16(_mm256_and_si256(half, size), size));
    return {_mm512_cvtph_ps(half) * splat(0x1p8f)};
}

// Four sums of 64 products; NaN needs no watch.
constexpr float DOT_E4M3_FACTOR = 1;
struct NanWatch {
    void see(const uint8_t *) {}
    bool seen() const { return false; }
};
INLINE void dot64_e4m3(const uint8_t *p, const float *x, F32 (&sums)[4]) {
    F32 w[4];
    load_e4m3(load_bytes(p), w);
    for (size_t t = 0; t < 4; t++) sums[t] = fma(w[t], load(x + LANES * t), sums[t]);
}

// Block scales of a tile's 16 rows, for four groups.
constexpr float SCALE_FACTOR = 1;
constexpr size_t GROUPS_AT_ONCE = 4;
INLINE void load_scales(const uint8_t *p, F32 (&scales)[GROUPS_AT_ONCE]) {
    load_e4m3(load_bytes(p), scales);
}

INLINE Sixteen to_floats(__m128i bytes) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}

INLINE __m128i load_four_bytes(const uint8_t *p) {
    int32_t bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return _mm_cvtsi32_si128(bytes);
}

INLINE Sixteen load_e2m1(const uint8_t *first, const uint8_t *second) {
    const __m128i nibble = _mm_set1_epi8(15);
    __m128i bytes = _mm_unpacklo_epi32(load_four_bytes(first), load_four_bytes(second));
    __m128i codes = _mm_unpacklo_epi32(_mm_and_si128(bytes, nibble),
                                       _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble));
    return to_floats(_mm_shuffle_epi8(load_quarter(TWICE_E2M1), codes));
}

INLINE Sixteen load_int4(const uint8_t *p, int shift) {
    __m128i codes =
        _mm_and_si128(_mm_srl_epi16(load_quarter(p), _mm_cvtsi32_si128(shift)), _mm_set1_epi8(15));
    const __m128i eight = _mm_set1_epi8(8);
    return to_floats(_mm_sub_epi8(_mm_xor_si128(codes, eight), eight));
}

INLINE void store_codes(int8_t *to, Sixteen x) {
    __m128i bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x.part[0]));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), bytes);
}

INLINE void prefetch(const void *p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T0); }

// Sixteen rows of a group: 0..24 with 12 for zero, four columns of a row in each lane.
constexpr int32_t NVFP4_OFFSET = -12;
struct Nvfp4Codes {
    __m512i columns[4];
};
INLINE Nvfp4Codes load_nvfp4(const uint8_t *p) {
    // Four times the same: bits above a nibble do not count.
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    Nvfp4Codes w;
    for (size_t half = 0; half < 2; half++) {
        __m512i bytes = load_bytes(p + 64 * half);
        w.columns[2 * half] = _mm512_permutexvar_epi8(bytes, table);
        w.columns[2 * half + 1] = _mm512_permutexvar_epi8(_mm512_srli_epi16(bytes, 4), table);
    }
    return w;
}

INLINE F32 dot_nvfp4(const Nvfp4Codes &w, const QuantizedGroup &x) {
    __m512i sums = _mm512_set1_epi32(x.offset);
    for (size_t i = 0; i < 4; i++) {
        int32_t columns;
        std::memcpy(&columns, x.codes + 4 * i, sizeof columns);
        sums = _mm512_dpbusd_epi32(sums, w.columns[i], _mm512_set1_epi32(columns));
    }
    return _mm512_cvtepi32_ps(sums);
}

// One step of INT4: 0..15 with 8 for zero.
constexpr int32_t INT4_OFFSET = -8;
INLINE void dot_int4(const uint8_t *weight, const int8_t *codes, const int32_t *offsets,
                     F32 &even, F32 &odd) {
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i bytes = _mm512_xor_si512(load_bytes(weight), _mm512_set1_epi8(-0x78));
    __m512i x = load_bytes(codes), start = load_bytes(offsets);
    __m512i high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble);
    even = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(start, _mm512_and_si512(bytes, nibble), x));
    odd = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(start, high, x));
}
