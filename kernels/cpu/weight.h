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

// NVFP4 bytes are interleaved within a tile of 16 rows (the last tile has n % 16 if that is not 0),
// so that lanes are rows and a row's sum needs no shuffle. Of a tile of r rows, the codes lie as
// [group][half: 2][row: r][4], a byte holding column 8 * half + c of its group in the low nibble and
// column 8 * half + 4 + c in the high one; the block scales as [group][row: r].
constexpr size_t NVFP4_TILE = 16;

// 16 activations in 8 bits, as they meet a group of NVFP4 weights: x = code * scale. Where weight
// codes are unsigned, `offset` is what that adds to their sum, negated.
struct QuantizedGroup {
    int8_t codes[NVFP4_GROUP];
    float scale;
    int32_t offset;
};

// An activation row in 8 bits for INT4 weights, one scale for 16 values. Behind the codes stand for
// each lane of 4 values its scale and its offset.
struct QuantizedRow {
    int8_t *codes;
    float *scales;
    int32_t *offsets;
};
