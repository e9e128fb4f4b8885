// Eight floats in whatever the compiler makes of them: SSE2, two NEON registers, scalars. Same names
// as in vector_avx2.h, and the same values but for the rounding inside `fma` where there is none.
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

typedef float F32x8 __attribute__((vector_size(32)));
typedef int32_t I32x8 __attribute__((vector_size(32)));

INLINE F32x8 load(const float *p) {
    F32x8 x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
INLINE void store(float *p, F32x8 x) { std::memcpy(p, &x, sizeof x); }
INLINE F32x8 splat(float x) { return F32x8{x, x, x, x, x, x, x, x}; }
INLINE F32x8 zero() { return F32x8{}; }
INLINE F32x8 fma(F32x8 a, F32x8 b, F32x8 c) {
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
INLINE F32x8 max(F32x8 a, F32x8 b) { return a > b ? a : b; }
INLINE F32x8 min(F32x8 a, F32x8 b) { return a < b ? a : b; }
INLINE F32x8 magnitude(F32x8 x) {
    return reinterpret_cast<F32x8>(reinterpret_cast<I32x8>(x) & 0x7fffffff);
}
// For |x| below 2^22, which is all that is asked here.
INLINE F32x8 nearest(F32x8 x) {
    F32x8 large = splat(0x1.8p23f);
    return x + large - large;
}
INLINE F32x8 square_root(F32x8 x) {
    for (int i = 0; i < 8; i++) x[i] = __builtin_sqrtf(x[i]);
    return x;
}
INLINE F32x8 times_power_of_two(F32x8 x, F32x8 n) {
    I32x8 exponent = __builtin_convertvector(n, I32x8) + 127;
    return x * reinterpret_cast<F32x8>(exponent << 23);
}

INLINE float sum(F32x8 x) {
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}
INLINE void add_sums(F32x8 a, F32x8 b, F32x8 c, F32x8 d, bool add, float *to) {
    const float four[4] = {sum(a), sum(b), sum(c), sum(d)};
    for (int i = 0; i < 4; i++) to[i] = (add ? to[i] : 0) + four[i];
}

INLINE F32x8 load_bfloat16(const uint8_t *p) {
    uint16_t bits[8];
    std::memcpy(bits, p, sizeof bits);
    F32x8 x;
    for (int i = 0; i < 8; i++) x[i] = to_float(bits[i]);
    return x;
}

INLINE void load_e4m3(const uint8_t *p, F32x8 &low, F32x8 &high) {
    for (int i = 0; i < 8; i++) low[i] = float_of_e4m3(p[i]);
    for (int i = 0; i < 8; i++) high[i] = float_of_e4m3(p[8 + i]);
}

INLINE void load_finite_e4m3(const uint8_t *p, F32x8 &low, F32x8 &high) {
    load_e4m3(p, low, high);
    low *= splat(0x1p-8f);
    high *= splat(0x1p-8f);
}

// load_finite_e4m3 lets NaN through here.
struct NanWatch {
    void see(const uint8_t *) {}
    bool seen() const { return false; }
};

constexpr int8_t TWICE_E2M1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

INLINE void load_e2m1(const uint8_t *p, F32x8 &low, F32x8 &high) {
    for (int i = 0; i < 8; i++) low[i] = TWICE_E2M1[p[i / 2] >> 4 * (i % 2) & 15];
    for (int i = 0; i < 8; i++) high[i] = TWICE_E2M1[p[4 + i / 2] >> 4 * (i % 2) & 15];
}

INLINE int signed_nibble(uint8_t byte, int shift) { return ((byte >> shift & 15) ^ 8) - 8; }

INLINE void load_int4(const uint8_t *p, int shift, F32x8 &low, F32x8 &high) {
    for (int i = 0; i < 8; i++) low[i] = static_cast<float>(signed_nibble(p[i], shift));
    for (int i = 0; i < 8; i++) high[i] = static_cast<float>(signed_nibble(p[8 + i], shift));
}

INLINE void store_codes(int8_t *to, F32x8 a, F32x8 b) {
    a = nearest(a);
    b = nearest(b);
    for (int i = 0; i < 8; i++) to[i] = static_cast<int8_t>(a[i]);
    for (int i = 0; i < 8; i++) to[8 + i] = static_cast<int8_t>(b[i]);
}

INLINE void prefetch(const void *p) { __builtin_prefetch(p); }

// Signed codes need no offset.
constexpr int32_t NVFP4_OFFSET = 0, INT4_OFFSET = 0;

#if defined(__aarch64__)
// 32 products, the first 16 by 16 and the rest likewise, in lanes of 4.
INLINE F32x8 lanes(int8x16_t a0, int8x16_t a1, const int8_t *codes) {
    F32x8 x;
    int8x16_t a[2] = {a0, a1};
    for (int i = 0; i < 2; i++) {
        int8x16_t b = vld1q_s8(codes + 16 * i);
        int16x8_t low = vmull_s8(vget_low_s8(a[i]), vget_low_s8(b));
        int16x8_t high = vmull_high_s8(a[i], b);
        int32x4_t lane = vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
        float32x4_t lane_float = vcvtq_f32_s32(lane);
        std::memcpy(reinterpret_cast<float *>(&x) + 4 * i, &lane_float, sizeof lane_float);
    }
    return x;
}

INLINE F32x8 dot_nvfp4(const uint8_t *weight, const int8_t *codes, const int32_t *) {
    const int8x16_t table = vld1q_s8(TWICE_E2M1);
    uint8x16_t a = vld1q_u8(weight), b = vld1q_u8(weight + 16);
    const uint8x16_t nibble = vdupq_n_u8(15);
    return lanes(vqtbl1q_s8(table, vandq_u8(a, nibble)), vqtbl1q_s8(table, vandq_u8(b, nibble)),
                 codes) +
           lanes(vqtbl1q_s8(table, vshrq_n_u8(a, 4)), vqtbl1q_s8(table, vshrq_n_u8(b, 4)),
                 codes + 32);
}

INLINE void dot_int4(const uint8_t *weight, const int8_t *codes, const int32_t *, F32x8 &even,
                     F32x8 &odd) {
    int8x16_t a = vld1q_s8(reinterpret_cast<const int8_t *>(weight));
    int8x16_t b = vld1q_s8(reinterpret_cast<const int8_t *>(weight) + 16);
    even = lanes(vshrq_n_s8(vshlq_n_s8(a, 4), 4), vshrq_n_s8(vshlq_n_s8(b, 4), 4), codes);
    odd = lanes(vshrq_n_s8(a, 4), vshrq_n_s8(b, 4), codes);
}
#else
INLINE F32x8 dot_nvfp4(const uint8_t *weight, const int8_t *codes, const int32_t *) {
    I32x8 lane{};
    for (int i = 0; i < 32; i++)
        lane[i / 4] += TWICE_E2M1[weight[i] & 15] * codes[i] +
                       TWICE_E2M1[weight[i] >> 4] * codes[32 + i];
    return __builtin_convertvector(lane, F32x8);
}

INLINE void dot_int4(const uint8_t *weight, const int8_t *codes, const int32_t *, F32x8 &even,
                     F32x8 &odd) {
    I32x8 low{}, high{};
    for (int i = 0; i < 32; i++) {
        low[i / 4] += signed_nibble(weight[i], 0) * codes[i];
        high[i / 4] += signed_nibble(weight[i], 4) * codes[i];
    }
    even = __builtin_convertvector(low, F32x8);
    odd = __builtin_convertvector(high, F32x8);
}
#endif

INLINE void load_group_scales(const uint8_t *p, F32x8 (&scales)[4]) {
    for (int i = 0; i < 32; i++) scales[i / 8][i % 8] = float_of_e4m3(p[i / 2]) * 0x1p-8f;
}
