// Eight floats in an AVX2 register. Same names as in vector_portable.h.


using F32x8 = __m256;

inline F32x8 load(const float *p) { return _mm256_loadu_ps(p); }
inline void store(float *p, F32x8 x) { _mm256_storeu_ps(p, x); }
inline F32x8 splat(float x) { return _mm256_set1_ps(x); }
inline F32x8 zero() { return _mm256_setzero_ps(); }
inline F32x8 fma(F32x8 a, F32x8 b, F32x8 c) { return _mm256_fmadd_ps(a, b, c); }
inline F32x8 max(F32x8 a, F32x8 b) { return _mm256_max_ps(a, b); }
inline F32x8 min(F32x8 a, F32x8 b) { return _mm256_min_ps(a, b); }
inline F32x8 magnitude(F32x8 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
inline F32x8 nearest(F32x8 x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F32x8 square_root(F32x8 x) { return _mm256_sqrt_ps(x); }

// x * 2^n for whole n in -126..127, as float.
inline F32x8 times_power_of_two(F32x8 x, F32x8 n) {
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

inline float sum(F32x8 x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// Four sums at once.
inline void sums(F32x8 a, F32x8 b, F32x8 c, F32x8 d, float *to) {
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}

inline F32x8 load_bfloat16(const uint8_t *p) {
    __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}

// E4M3 codes, one in 16 bits and sign-extended, as float16 with the same fields: 2^-8 of the value.
// Float16 is wide enough for the small ones, whose exponent is zero, and its conversion is not slow.
inline __m256i half_of_e4m3(__m256i codes) {
    __m256i half = _mm256_and_si256(_mm256_slli_epi16(codes, 7), _mm256_set1_epi16(-0x4001));
    __m256i size = _mm256_set1_epi16(0x3f80);  // of the NaN; all ones is NaN in float16 too
    return _mm256_or_si256(half, _mm256_cmpeq_epi16(_mm256_and_si256(half, size), size));
}

inline void load_e4m3(const uint8_t *p, F32x8 &low, F32x8 &high) {
    const __m256i half =
        half_of_e4m3(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
    const F32x8 factor = splat(0x1p8f);
    low = _mm256_cvtph_ps(_mm256_castsi256_si128(half)) * factor;
    high = _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1)) * factor;
}

inline void to_floats(__m128i bytes, F32x8 &low, F32x8 &high) {
    low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)));
}

// 16 E2M1 codes in 8 bytes -> twice their values.
inline void load_e2m1(const uint8_t *p, F32x8 &low, F32x8 &high) {
    const __m128i table = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    const __m128i nibble = _mm_set1_epi8(15);
    __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(p));
    __m128i codes = _mm_unpacklo_epi8(_mm_and_si128(bytes, nibble),
                                      _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble));
    to_floats(_mm_shuffle_epi8(table, codes), low, high);
}

// The low or high halves of 16 bytes as signed integers.
inline void load_int4(const uint8_t *p, int shift, F32x8 &low, F32x8 &high) {
    __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    __m128i codes = _mm_and_si128(_mm_srl_epi16(bytes, _mm_cvtsi32_si128(shift)), _mm_set1_epi8(15));
    const __m128i eight = _mm_set1_epi8(8);
    to_floats(_mm_sub_epi8(_mm_xor_si128(codes, eight), eight), low, high);
}

// The nearest integers of 16 floats as bytes.
inline void store_codes(int8_t *to, F32x8 a, F32x8 b) {
    __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
    words = _mm256_permute4x64_epi64(words, _MM_SHUFFLE(3, 1, 2, 0));
    __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), bytes);
}

inline void prefetch(const void *p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T0); }

inline __m256i load_bytes(const void *p) {
    return _mm256_loadu_si256(static_cast<const __m256i *>(p));
}

// Unsigned weight codes times signed activation codes, summed in each lane, less the offset.
inline F32x8 lanes(__m256i sums, const int32_t *offsets) {
    __m256i lane = _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(lane, load_bytes(offsets)));
}

// One block of NVFP4, codes doubled: 0..24 with 12 for zero. At most 4 * 24 * 127 in 16 bits.
constexpr int32_t NVFP4_OFFSET = 12;
inline F32x8 dot_nvfp4(const uint8_t *weight, const int8_t *codes, const int32_t *offsets) {
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i bytes = load_bytes(weight);
    __m256i even = _mm256_shuffle_epi8(table, _mm256_and_si256(bytes, nibble));
    __m256i odd =
        _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble));
    __m256i s = _mm256_add_epi16(_mm256_maddubs_epi16(even, load_bytes(codes)),
                                 _mm256_maddubs_epi16(odd, load_bytes(codes + 32)));
    return lanes(s, offsets);
}

// One step of INT4 for the even and the odd row: 0..15 with 8 for zero.
constexpr int32_t INT4_OFFSET = 8;
inline void dot_int4(const uint8_t *weight, const int8_t *codes, const int32_t *offsets,
                     F32x8 &even, F32x8 &odd) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i bytes = _mm256_xor_si256(load_bytes(weight), _mm256_set1_epi8(-0x78));
    __m256i x = load_bytes(codes);
    even = lanes(_mm256_maddubs_epi16(_mm256_and_si256(bytes, nibble), x), offsets);
    bytes = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
    odd = lanes(_mm256_maddubs_epi16(bytes, x), offsets);
}

// Scales of 8 NVFP4 groups, each for the two lanes of its group, 2^-8 of their values.
inline void load_group_scales(const uint8_t *p, F32x8 &first, F32x8 &second) {
    __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(p));
    __m256i half = half_of_e4m3(_mm256_castsi128_si256(_mm_cvtepi8_epi16(bytes)));
    F32x8 scales = _mm256_cvtph_ps(_mm256_castsi256_si128(half));
    first = _mm256_permutevar8x32_ps(scales, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
    second = _mm256_permutevar8x32_ps(scales, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7));
}
