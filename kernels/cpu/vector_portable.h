// Eight floats in whatever the compiler makes of them: SSE2, two NEON registers, scalars. Same names
// as in vector_avx2.h, and the same values but for the rounding inside `fma` where there is none.
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

typedef float F32 __attribute__((vector_size(32)));
constexpr size_t LANES = 8, PARTS = 16 / LANES;
struct Sixteen {
    F32 part[PARTS];
};
constexpr size_t TILE_ROWS = 3, PANEL_ROWS = 4;
typedef int32_t I32x8 __attribute__((vector_size(32)));

INLINE F32 load(const float *p) {
    F32 x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
INLINE void store(float *p, F32 x) { std::memcpy(p, &x, sizeof x); }
INLINE F32 splat(float x) { return F32{x, x, x, x, x, x, x, x}; }
INLINE F32 zero() { return F32{}; }
INLINE F32 fma(F32 a, F32 b, F32 c) {
#if defined(__aarch64__)
    float32x4_t parts[3][2];
    std::memcpy(parts[0], &a, sizeof a);
    std::memcpy(parts[1], &b, sizeof b);
    std::memcpy(parts[2], &c, sizeof c);
    for (int i = 0; i < 2; i++) parts[2][i] = vfmaq_f32(parts[2][i], parts[0][i], parts[1][i]);
    std::memcpy(&c, parts[2], sizeof c);
    return c;
#else
    return a * b + c;
#endif
}
INLINE F32 max(F32 a, F32 b) { return a > b ? a : b; }
INLINE F32 min(F32 a, F32 b) { return a < b ? a : b; }
INLINE F32 magnitude(F32 x) {
    return reinterpret_cast<F32>(reinterpret_cast<I32x8>(x) & 0x7fffffff);
}
// For |x| below 2^22, which is all that is asked here.
INLINE F32 nearest(F32 x) {
    F32 large = splat(0x1.8p23f);
    return x + large - large;
}
INLINE F32 square_root(F32 x) {
    for (int i = 0; i < 8; i++) x[i] = __builtin_sqrtf(x[i]);
    return x;
}
INLINE F32 times_power_of_two(F32 x, F32 n) {
    I32x8 exponent = __builtin_convertvector(n, I32x8) + 127;
    return x * reinterpret_cast<F32>(exponent << 23);
}

INLINE float sum(F32 x) {
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}
INLINE void add_sums(F32 a, F32 b, F32 c, F32 d, bool add, float *to) {
    const float four[4] = {sum(a), sum(b), sum(c), sum(d)};
    for (int i = 0; i < 4; i++) to[i] = (add ? to[i] : 0) + four[i];
}

INLINE F32 load_bfloat16(const uint8_t *p) {
    uint16_t bits[8];
    std::memcpy(bits, p, sizeof bits);
    F32 x;
    for (int i = 0; i < 8; i++) x[i] = to_float(bits[i]);
    return x;
}

INLINE Sixteen load_e4m3(const uint8_t *p) {
    Sixteen w;
    for (size_t i = 0; i < 16; i++) w.part[i / LANES][i % LANES] = float_of_e4m3(p[i]);
    return w;
}

constexpr float DOT_E4M3_FACTOR = 1;
struct NanWatch {
    void see(const uint8_t *) {}
    bool seen() const { return false; }
};
INLINE void dot64_e4m3(const uint8_t *p, const float *x, F32 (&sums)[4]) {
    for (size_t t = 0; t < 4; t++) {
        Sixteen w = load_e4m3(p + 16 * t);
        for (size_t i = 0; i < PARTS; i++)
            sums[t] = fma(w.part[i], load(x + 16 * t + LANES * i), sums[t]);
    }
}

INLINE Sixteen load_e2m1(const uint8_t *first, const uint8_t *second) {
    Sixteen w;
    for (size_t i = 0; i < 16; i++)
        w.part[i / LANES][i % LANES] = TWICE_E2M1[(i < 8 ? first : second)[i % 4] >> (i & 4) & 15];
    return w;
}

INLINE int signed_nibble(uint8_t byte, int shift) { return ((byte >> shift & 15) ^ 8) - 8; }

INLINE Sixteen load_int4(const uint8_t *p, int shift) {
    Sixteen w;
    for (size_t i = 0; i < 16; i++)
        w.part[i / LANES][i % LANES] = static_cast<float>(signed_nibble(p[i], shift));
    return w;
}

INLINE void store_codes(int8_t *to, Sixteen x) {
    for (size_t p = 0; p < PARTS; p++) {
        F32 whole = nearest(x.part[p]);
        for (size_t i = 0; i < LANES; i++) to[LANES * p + i] = static_cast<int8_t>(whole[i]);
    }
}

INLINE void prefetch(const void *p) { __builtin_prefetch(p); }

// Signed codes need no offset.
constexpr int32_t NVFP4_OFFSET = 0, INT4_OFFSET = 0;

#if defined(__aarch64__)
INLINE F32 to_floats(int32x4_t low, int32x4_t high) {
    F32 x;
    float32x4_t parts[2] = {vcvtq_f32_s32(low), vcvtq_f32_s32(high)};
    std::memcpy(&x, parts, sizeof x);
    return x;
}

// Eight rows of a group, four rows of four columns in each register.
struct Nvfp4Codes {
    int8x16_t columns[4][2];
};
INLINE Nvfp4Codes load_nvfp4(const uint8_t *p) {
    const int8x16_t table = vld1q_s8(TWICE_E2M1);
    Nvfp4Codes w;
    for (size_t half = 0; half < 2; half++)
        for (size_t four = 0; four < 2; four++) {
            uint8x16_t bytes = vld1q_u8(p + 64 * half + 16 * four);
            w.columns[2 * half][four] = vqtbl1q_s8(table, vandq_u8(bytes, vdupq_n_u8(15)));
            w.columns[2 * half + 1][four] = vqtbl1q_s8(table, vshrq_n_u8(bytes, 4));
        }
    return w;
}

// Four products of at most 12 * 127 are summed in 16 bits.
INLINE F32 dot_nvfp4(const Nvfp4Codes &w, const QuantizedGroup &x) {
    int32x4_t sums[2];
    for (size_t four = 0; four < 2; four++) {
        int16x8_t low = vdupq_n_s16(0), high = low;
        for (size_t i = 0; i < 4; i++) {
            int32_t columns;
            std::memcpy(&columns, x.codes + 4 * i, sizeof columns);
            int8x16_t codes = vreinterpretq_s8_s32(vdupq_n_s32(columns));
            low = vmlal_s8(low, vget_low_s8(w.columns[i][four]), vget_low_s8(codes));
            high = vmlal_high_s8(high, w.columns[i][four], codes);
        }
        sums[four] = vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
    }
    return to_floats(sums[0], sums[1]);
}

// 32 products in lanes of 4.
INLINE F32 lanes(int8x16_t a0, int8x16_t a1, const int8_t *codes) {
    int8x16_t a[2] = {a0, a1};
    int32x4_t sums[2];
    for (int i = 0; i < 2; i++) {
        int8x16_t b = vld1q_s8(codes + 16 * i);
        int16x8_t low = vmull_s8(vget_low_s8(a[i]), vget_low_s8(b));
        sums[i] = vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(vmull_high_s8(a[i], b)));
    }
    return to_floats(sums[0], sums[1]);
}

INLINE void dot_int4(const uint8_t *weight, const int8_t *codes, const int32_t *, F32 &even,
                     F32 &odd) {
    int8x16_t a = vld1q_s8(reinterpret_cast<const int8_t *>(weight));
    int8x16_t b = vld1q_s8(reinterpret_cast<const int8_t *>(weight) + 16);
    even = lanes(vshrq_n_s8(vshlq_n_s8(a, 4), 4), vshrq_n_s8(vshlq_n_s8(b, 4), 4), codes);
    odd = lanes(vshrq_n_s8(a, 4), vshrq_n_s8(b, 4), codes);
}
#else
struct Nvfp4Codes {
    int8_t of[LANES][NVFP4_GROUP];
};
INLINE Nvfp4Codes load_nvfp4(const uint8_t *p) {
    Nvfp4Codes w;
    for (size_t r = 0; r < LANES; r++)
        for (size_t c = 0; c < NVFP4_GROUP; c++)
            w.of[r][c] = TWICE_E2M1[p[64 * (c / 8) + 4 * r + c % 4] >> (c & 4) & 15];
    return w;
}

INLINE F32 dot_nvfp4(const Nvfp4Codes &w, const QuantizedGroup &x) {
    I32x8 lane{};
    for (size_t r = 0; r < LANES; r++)
        for (size_t c = 0; c < NVFP4_GROUP; c++) lane[r] += w.of[r][c] * x.codes[c];
    return __builtin_convertvector(lane, F32);
}

INLINE void dot_int4(const uint8_t *weight, const int8_t *codes, const int32_t *, F32 &even,
                     F32 &odd) {
    I32x8 low{}, high{};
    for (int i = 0; i < 32; i++) {
        low[i / 4] += signed_nibble(weight[i], 0) * codes[i];
        high[i / 4] += signed_nibble(weight[i], 4) * codes[i];
    }
    even = __builtin_convertvector(low, F32);
    odd = __builtin_convertvector(high, F32);
}
#endif

constexpr float SCALE_FACTOR = 1;
constexpr size_t GROUPS_AT_ONCE = 1;
INLINE void load_scales(const uint8_t *p, F32 (&scales)[GROUPS_AT_ONCE]) {
    for (size_t i = 0; i < LANES; i++) scales[0][i] = float_of_e4m3(p[i]);
}
