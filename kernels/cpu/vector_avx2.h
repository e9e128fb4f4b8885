// Eight floats in an AVX2 register. Same names as in vector_portable.h and vector_avx512.h.
// With EDGE_VNNI: with the instruction that sums products of bytes.

using F32 = __m256;
constexpr size_t LANES = 8, PARTS = 16 / LANES;
struct Sixteen {
    F32 part[PARTS];
};
// Rows of activations for whose sums there are registers: in floats, and against NVFP4.
constexpr size_t TILE_ROWS = 3, PANEL_ROWS = 6;

INLINE F32 load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void store(float *p, F32 x) { _mm256_storeu_ps(p, x); }
INLINE F32 splat(float x) { return _mm256_set1_ps(x); }
INLINE F32 zero() { return _mm256_setzero_ps(); }
INLINE F32 fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
INLINE F32 max(F32 a, F32 b) { return _mm256_max_ps(a, b); }
INLINE F32 min(F32 a, F32 b) { return _mm256_min_ps(a, b); }
INLINE F32 magnitude(F32 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
INLINE F32 nearest(F32 x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE F32 square_root(F32 x) { return _mm256_sqrt_ps(x); }

// x * 2^n for whole n in -126..127, as float.
INLINE F32 times_power_of_two(F32 x, F32 n) {
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

INLINE float sum(F32 x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// Four sums at once, into or onto `to`.
INLINE void add_sums(F32 a, F32 b, F32 c, F32 d, bool add, float *to) {
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    _mm_storeu_ps(to, add ? _mm_add_ps(four, _mm_loadu_ps(to)) : four);
}

INLINE __m256i load_bytes(const void *p) {
    return _mm256_loadu_si256(static_cast<const __m256i *>(p));
}

INLINE F32 load_bfloat16(const uint8_t *p) {
    __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}

// E4M3 codes, one in 16 bits and sign-extended, as float16 with the same fields: 2^-8 of the value.
// Float16 is wide enough for the small ones, whose exponent is zero, and its conversion is not slow.
// NaN is not kept.
INLINE __m256i half_of_e4m3(__m256i codes) {
    return _mm256_and_si256(_mm256_slli_epi16(codes, 7), _mm256_set1_epi16(-0x4001));
}

// With NaN, which is all ones in float16 too.
INLINE __m256i half_of_e4m3_or_nan(__m256i codes) {
    __m256i half = half_of_e4m3(codes), size = _mm256_set1_epi16(0x3f80);
    return _mm256_or_si256(half, _mm256_cmpeq_epi16(_mm256_and_si256(half, size), size));
}

INLINE Sixteen to_floats(__m256i half) {
    return {{_mm256_cvtph_ps(_mm256_castsi256_si128(half)),
             _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1))}};
}

INLINE __m256i load_codes(const uint8_t *p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}

INLINE Sixteen load_e4m3(const uint8_t *p) {
    Sixteen w = to_floats(half_of_e4m3_or_nan(load_codes(p)));
    return {{w.part[0] * splat(0x1p8f), w.part[1] * splat(0x1p8f)}};
}

// Four sums of 64 products, 2^-8 of them and without NaN.
constexpr float DOT_E4M3_FACTOR = 0x1p8f;
INLINE void dot64_e4m3(const uint8_t *p, const float *x, F32 (&sums)[4]) {
    for (size_t t = 0; t < 4; t++) {
        Sixteen w = to_floats(half_of_e4m3(load_codes(p + 16 * t)));
        for (size_t i = 0; i < PARTS; i++)
            sums[t] = fma(w.part[i], load(x + 16 * t + LANES * i), sums[t]);
    }
}

// Remembers whether one of the E4M3 codes that it saw, 64 at a time, was NaN.
struct NanWatch {
    __m256i largest;
    NanWatch() : largest(_mm256_setzero_si256()) {}
    void see(const uint8_t *codes) {
        for (size_t half = 0; half < 2; half++) {
            __m256i bytes = load_bytes(codes + 32 * half);
            largest = _mm256_max_epu8(largest, _mm256_or_si256(bytes, _mm256_set1_epi8(-0x80)));
        }
    }
    bool seen() const {
        return _mm256_movemask_epi8(_mm256_cmpeq_epi8(largest, _mm256_set1_epi8(-1))) != 0;
    }
};

INLINE Sixteen to_floats(__m128i bytes) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}

INLINE __m128i load_four_bytes(const uint8_t *p) {
    int32_t bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return _mm_cvtsi32_si128(bytes);
}

// A group of E2M1 codes -> twice their values. Of each half's four bytes the low nibbles come first.
INLINE Sixteen load_e2m1(const uint8_t *first, const uint8_t *second) {
    const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i *>(TWICE_E2M1));
    const __m128i nibble = _mm_set1_epi8(15);
    __m128i bytes = _mm_unpacklo_epi32(load_four_bytes(first), load_four_bytes(second));
    __m128i codes = _mm_unpacklo_epi32(_mm_and_si128(bytes, nibble),
                                       _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble));
    return to_floats(_mm_shuffle_epi8(table, codes));
}

// The low or high halves of 16 bytes as signed integers.
INLINE Sixteen load_int4(const uint8_t *p, int shift) {
    __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    __m128i codes = _mm_and_si128(_mm_srl_epi16(bytes, _mm_cvtsi32_si128(shift)), _mm_set1_epi8(15));
    const __m128i eight = _mm_set1_epi8(8);
    return to_floats(_mm_sub_epi8(_mm_xor_si128(codes, eight), eight));
}

// The nearest integers of 16 floats as bytes.
INLINE void store_codes(int8_t *to, Sixteen x) {
    __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x.part[0]), _mm256_cvtps_epi32(x.part[1]));
    words = _mm256_permute4x64_epi64(words, _MM_SHUFFLE(3, 1, 2, 0));
    __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), bytes);
}

INLINE void prefetch(const void *p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T0); }

// Eight rows of a group: 0..24 with 12 for zero, four columns of a row in each lane.
constexpr int32_t NVFP4_OFFSET = -12;
struct Nvfp4Codes {
    __m256i columns[4];
};
INLINE Nvfp4Codes load_nvfp4(const uint8_t *p) {
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    const __m256i nibble = _mm256_set1_epi8(15);
    Nvfp4Codes w;
    for (size_t half = 0; half < 2; half++) {
        __m256i bytes = load_bytes(p + 64 * half);
        __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
        w.columns[2 * half] = _mm256_shuffle_epi8(table, _mm256_and_si256(bytes, nibble));
        w.columns[2 * half + 1] = _mm256_shuffle_epi8(table, high);
    }
    return w;
}

INLINE __m256i four_codes(const int8_t *p) {
    int32_t bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return _mm256_set1_epi32(bytes);
}

// One step of INT4: 0..15 with 8 for zero.
constexpr int32_t INT4_OFFSET = -8;

// Sums in each lane of unsigned weight codes times signed activation codes. Without VNNI in 16 bits
// at first: two products for INT4, eight for NVFP4, of which none is above 24 * 127.
#if defined(EDGE_VNNI)
INLINE F32 products(__m256i w, __m256i x, const int32_t *offsets) {
    return _mm256_cvtepi32_ps(_mm256_dpbusd_avx_epi32(load_bytes(offsets), w, x));
}
INLINE F32 dot_nvfp4(const Nvfp4Codes &w, const QuantizedGroup &x) {
    __m256i sums = _mm256_set1_epi32(x.offset);
    for (size_t i = 0; i < 4; i++)
        sums = _mm256_dpbusd_avx_epi32(sums, w.columns[i], four_codes(x.codes + 4 * i));
    return _mm256_cvtepi32_ps(sums);
}
#else
INLINE __m256i lanes(__m256i sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }
INLINE F32 products(__m256i w, __m256i x, const int32_t *offsets) {
    __m256i sums = lanes(_mm256_maddubs_epi16(w, x));
    return _mm256_cvtepi32_ps(_mm256_add_epi32(sums, load_bytes(offsets)));
}
INLINE F32 dot_nvfp4(const Nvfp4Codes &w, const QuantizedGroup &x) {
    __m256i sums = _mm256_setzero_si256();
    for (size_t i = 0; i < 4; i++)
        sums = _mm256_add_epi16(
            sums, _mm256_maddubs_epi16(w.columns[i], four_codes(x.codes + 4 * i)));
    return _mm256_cvtepi32_ps(_mm256_add_epi32(lanes(sums), _mm256_set1_epi32(x.offset)));
}
#endif

INLINE void dot_int4(const uint8_t *weight, const int8_t *codes, const int32_t *offsets,
                     F32 &even, F32 &odd) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i bytes = _mm256_xor_si256(load_bytes(weight), _mm256_set1_epi8(-0x78));
    __m256i x = load_bytes(codes);
    even = products(_mm256_and_si256(bytes, nibble), x, offsets);
    odd = products(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble), x, offsets);
}

// Block scales of eight of a tile's rows, 2^-8 of them.
constexpr float SCALE_FACTOR = 0x1p8f;
constexpr size_t GROUPS_AT_ONCE = 1;
INLINE void load_scales(const uint8_t *p, F32 (&scales)[GROUPS_AT_ONCE]) {
    __m128i codes = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
    scales[0] = _mm256_cvtph_ps(
        _mm256_castsi256_si128(half_of_e4m3_or_nan(_mm256_castsi128_si256(codes))));
}
