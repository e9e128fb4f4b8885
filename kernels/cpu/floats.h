// Small floating-point formats as bits. Names follow the field: float8 E4M3 is the finite-only
// variant "e4m3fn" (no infinities, 448 the largest, 0x7f NaN).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

// For what a function that is compiled several times calls: it follows only where it is inlined.
#define INLINE inline __attribute__((always_inline))

constexpr float E4M3_MAX = 448.0f;
constexpr float E4M3_SMALLEST = 0x1p-9f;  // above zero
constexpr float E2M1_MAX = 6.0f;

INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// A weight as float32: as it is, or from bfloat16's bits.
INLINE float to_float(float x) { return x; }
INLINE float to_float(uint16_t bfloat16) { return float_of(uint32_t{bfloat16} << 16); }

// The bits of |x|. As integers they are ordered like the numbers; NaN is above infinity.
INLINE uint32_t magnitude(float x) { return bits_of(x) & 0x7fffffff; }

// Rounded to the nearest bfloat16, ties to even; x is not NaN.
INLINE float round_to_bfloat16(float x) {
    uint32_t bits = bits_of(x);
    return float_of((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000);
}

// Rounded to the nearest E4M3, ties to even; beyond 448 the largest is taken. x is not NaN.
INLINE uint8_t e4m3_of(float x) {
    uint32_t sign = bits_of(x) >> 24 & 0x80;
    float size = std::min(std::fabs(x), E4M3_MAX);
    uint32_t bits = bits_of(size);
    // Normal: 3 of 23 mantissa bits stay, and the exponent's bias goes from 127 to 7.
    uint32_t normal = ((bits + 0x7ffff + ((bits >> 20) & 1)) >> 20) - (120 << 3);
    // Below 2^-6: multiples of 2^-9. The eighth is the smallest normal number's own code.
    uint32_t subnormal = static_cast<int>(std::nearbyint(std::min(size, 1.0f) * 512));
    return static_cast<uint8_t>(sign | (size < 0x1p-6f ? subnormal : normal));
}

INLINE float float_of_e4m3(uint8_t code) {
    uint32_t size = code & 0x7f;
    float value = size < 8 ? size * E4M3_SMALLEST : float_of((size + (120 << 3)) << 20);
    return size == 0x7f ? NAN : code & 0x80 ? -value : value;
}

// The values of all E4M3 codes.
struct E4m3Values {
    float of[256];
    constexpr E4m3Values() : of() {
        for (int code = 0; code < 256; code++) {
            int exponent = code >> 3 & 15, mantissa = code & 7;
            float value = static_cast<float>(exponent ? 8 + mantissa : mantissa) * E4M3_SMALLEST;
            for (int i = 1; i < exponent; i++) value *= 2;
            if ((code & 0x7f) == 0x7f) value = __builtin_nanf("");
            of[code] = code & 0x80 ? -value : value;
        }
    }
};
inline constexpr E4m3Values E4M3_VALUES;

// By E2M1 code.
inline constexpr int8_t TWICE_E2M1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
