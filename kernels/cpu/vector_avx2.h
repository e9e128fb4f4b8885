// Eight floats in an AVX2 register. Same names as in vector_portable.h.
// With EDGE_VNNI: with the instruction that sums products of bytes.


using F32x8 = __m256;

INLINE F32x8 load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void store(float *p, F32x8 x) { _mm256_storeu_ps(p, x); }
INLINE F32x8 splat(float x) { return _mm256_set1_ps(x); }
INLINE F32x8 zero() { return _mm256_setzero_ps(); }
INLINE F32x8 fma(F32x8 a, F32x8 b, F32x8 c) { return _mm256_fmadd_ps(a, b, c); }
INLINE F32x8 max(F32x8 a, F32x8 b) { return _mm256_max_ps(a, b); }
INLINE F32x8 min(F32x8 a, F32x8 b) { return _mm256_min_ps(a, b); }
INLINE F32x8 magnitude(F32x8 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
INLINE F32x8 nearest(F32x8 x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE F32x8 square_root(F32x8 x) { return _mm256_sqrt_ps(x); }

// x * 2^n for whole n in -126..127, as float.
INLINE F32x8 times_power_of_two(F32x8 x, F32x8 n) {
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

INLINE float sum(F32x8 x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// Four sums at once, into or onto `to`.
INLINE void add_sums(F32x8 a, F32x8 b, F32x8 c, F32x8 d, bool add, float *to) {
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    _mm_storeu_ps(to, add ? _mm_add_ps(four, _mm_loadu_ps(to)) : four);
}

INLINE F32x8 load_bfloat16(const uint8_t *p) {
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

INLINE void to_floats(__m256i half, F32x8 &low, F32x8 &high) {
    low = _mm256_cvtph_ps(_mm256_castsi256_si128(half));
    high = _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1));
}

INLINE __m256i load_codes(const uint8_t *p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}

// 2^-8 of the values.
INLINE void load_finite_e4m3(const uint8_t *p, F32x8 &low, F32x8 &high) {
    to_floats(half_of_e4m3(load_codes(p)), low, high);
}

INLINE void load_e4m3(const uint8_t *p, F32x8 &low, F32x8 &high) {
    to_floats(half_of_e4m3_or_nan(load_codes(p)), low, high);
    low *= splat(0x1p8f);
    high *= splat(0x1p8f);
}

// Remembers whether one of the E4M3 codes that it saw, 32 at a time, was NaN.
struct NanWatch {
    __m256i largest;
    NanWatch() : largest(_mm256_setzero_si256()) {}
    void see(const uint8_t *codes) {
        __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(codes));
        largest = _mm256_max_epu8(largest, _mm256_or_si256(bytes, _mm256_set1_epi8(-0x80)));
    }
    bool seen() const {
        return _mm256_movemask_epi8(_mm256_cmpeq_epi8(largest, _mm256_set1_epi8(-1))) != 0;
    }
};

INLINE void to_floats(__m128i bytes, F32x8 &low, F32x8 &high) {
    low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)));
}

// 16 E2M1 codes in 8 bytes -> twice their values.
INLINE void load_e2m1(const uint8_t *p, F32x8 &low, F32x8 &high) {
    const __m128i table = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    const __m128i nibble = _mm_set1_epi8(15);
    __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(p));
    __m128i codes = _mm_unpacklo_epi8(_mm_and_si128(bytes, nibble),
                                      _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble));
    to_floats(_mm_shuffle_epi8(table, codes), low, high);
}

// The low or high halves of 16 bytes as signed integers.
INLINE void load_int4(const uint8_t *p, int shift, F32x8 &low, F32x8 &high) {
    __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    __m128i codes = _mm_and_si128(_mm_srl_epi16(bytes, _mm_cvtsi32_si128(shift)), _mm_set1_epi8(15));
    const __m128i eight = _mm_set1_epi8(8);
    to_floats(_mm_sub_epi8(_mm_xor_si128(codes, eight), eight), low, high);
}

// The nearest integers of 16 floats as bytes.
INLINE void store_codes(int8_t *to, F32x8 a, F32x8 b) {
    __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
    words = _mm256_permute4x64_epi64(words, _MM_SHUFFLE(3, 1, 2, 0));
    __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), bytes);
}

INLINE void prefetch(const void *p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T0); }

INLINE __m256i load_bytes(const void *p) {
    return _mm256_loadu_si256(static_cast<const __m256i *>(p));
}

// Sums in each lane of unsigned weight codes times signed activation codes, with the offset. At
// most 2 * 24 * 127 in 16 bits, twice.
#if defined(EDGE_VNNI)
INLINE F32x8 products(__m256i w, __m256i x, const int32_t *offsets) {
    return _mm256_cvtepi32_ps(_mm256_dpbusd_avx_epi32(load_bytes(offsets), w, x));
}
INLINE F32x8 products(__m256i w, __m256i x, __m256i w2, __m256i x2, const int32_t *offsets) {
    __m256i start = _mm256_dpbusd_avx_epi32(load_bytes(offsets), w, x);
    return _mm256_cvtepi32_ps(_mm256_dpbusd_avx_epi32(start, w2, x2));
}
#else
INLINE F32x8 lanes(__m256i sums, const int32_t *offsets) {
    __m256i lane = _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
    return _mm256_cvtepi32_ps(_mm256_add_epi32(lane, load_bytes(offsets)));
}
INLINE F32x8 products(__m256i w, __m256i x, const int32_t *offsets) {
    return lanes(_mm256_maddubs_epi16(w, x), offsets);
}
INLINE F32x8 products(__m256i w, __m256i x, __m256i w2, __m256i x2, const int32_t *offsets) {
    return lanes(_mm256_add_epi16(_mm256_maddubs_epi16(w, x), _mm256_maddubs_epi16(w2, x2)),
                 offsets);
}
#endif

// One block of NVFP4, codes doubled: 0..24 with 12 for zero.
constexpr int32_t NVFP4_OFFSET = -12;
INLINE F32x8 dot_nvfp4(const uint8_t *weight, const int8_t *codes, const int32_t *offsets) {
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i bytes = load_bytes(weight);
    __m256i even = _mm256_shuffle_epi8(table, _mm256_and_si256(bytes, nibble));
    __m256i odd =
        _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble));
    return products(even, load_bytes(codes), odd, load_bytes(codes + 32), offsets);
}

// One step of INT4 for the even and the odd row: 0..15 with 8 for zero.
constexpr int32_t INT4_OFFSET = -8;
INLINE void dot_int4(const uint8_t *weight, const int8_t *codes, const int32_t *offsets,
                     F32x8 &even, F32x8 &odd) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i bytes = _mm256_xor_si256(load_bytes(weight), _mm256_set1_epi8(-0x78));
    __m256i x = load_bytes(codes);
    even = products(_mm256_and_si256(bytes, nibble), x, offsets);
    odd = products(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble), x, offsets);
}

// Scales of 16 NVFP4 groups, each for the two lanes of its group, 2^-8 of their values.
INLINE void load_group_scales(const uint8_t *p, F32x8 (&scales)[4]) {
    F32x8 low, high;
    to_floats(half_of_e4m3_or_nan(load_codes(p)), low, high);
    const __m256i first = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    const __m256i second = _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7);
    scales[0] = _mm256_permutevar8x32_ps(low, first);
    scales[1] = _mm256_permutevar8x32_ps(low, second);
    scales[2] = _mm256_permutevar8x32_ps(high, first);
    scales[3] = _mm256_permutevar8x32_ps(high, second);
}
