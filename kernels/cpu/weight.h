// A weight as a bundle maps it: edge/engines/formats.py says what the bytes mean. Nothing is copied.
#pragma once

#include <cstddef>
#include <cstdint>

enum class Format { FLOAT32, BFLOAT16, FP8, INT4, NVFP4 };

constexpr size_t NVFP4_GROUP = 16;  // columns with one scale
constexpr size_t INT4_BLOCK = 128;

// One matrix W [n, k]: n outputs, k inputs.
struct Matrix {
    Format format;
    size_t n, k;
    const uint8_t *values;
    const uint8_t *block_scale;  // NVFP4: E4M3; INT4: float32
    float scale;                 // NVFP4, FP8
};

// What a row of k columns takes, codes and block scales. An INT4 byte serves two rows.
constexpr size_t value_bytes(Format format, size_t k) {
    switch (format) {
        case Format::FLOAT32: return 4 * k;
        case Format::BFLOAT16: return 2 * k;
        case Format::FP8: return k;
        default: return k / 2;
    }
}
constexpr size_t scale_bytes(Format format, size_t k) {
    return format == Format::NVFP4  ? k / NVFP4_GROUP
           : format == Format::INT4 ? k / INT4_BLOCK * 4
                                    : 0;
}

// An activation row in 8 bits: x = code * scale, one scale for 16 of them. Ordered for the format
// that it meets: blocks of 8 lanes, LANE values each, behind the codes of which stand for each lane
// its scale and what its sum lacks because weight codes are unsigned there.
struct Quantized {
    int8_t *codes;
    float *scales;
    int32_t *offsets;
};

// Values in one lane of a block. NVFP4: the block is 64 columns, first the 32 even ones, then the
// 32 odd ones, lanes likewise. INT4: 32 columns in their order.
constexpr size_t NVFP4_BLOCK = 64, INT4_STEP = 32;
