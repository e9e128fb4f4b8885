// NVFP4: E2M1 codes, an E4M3 scale for every 16 along a row, one float32 scale for the tensor.
// Every operation is float32 in ModelOpt's order, so that the bytes are the same.
#include "kernels.h"
#include "weight.h"

constexpr size_t GROUP = 16;

// |x| rounded to {0, 0.5, 1, 1.5, 2, 3, 4, 6}, ties to the even code. NaN (0 / 0) counts as the
// largest, as it does in ModelOpt's binary search.
INLINE uint32_t e2m1_of(float x) {
    float size = std::fabs(x);
    uint32_t code = !(size <= 0.25f) + !(size < 0.75f) + !(size <= 1.25f) + !(size < 1.75f) +
                    !(size <= 2.5f) + !(size < 3.5f) + !(size <= 5.0f);
    return code + 8 * (x < 0);
}

template <class T>
MULTIVERSION static void pack(
    const T *weight, size_t n_groups, float scale_2, uint8_t *codes, uint8_t *scales) {
    float divisor = E2M1_MAX * scale_2;
    for (size_t g = 0; g < n_groups; g++, weight += GROUP, codes += GROUP / 2) {
        uint32_t most = 0;
        for (size_t i = 0; i < GROUP; i++) most = std::max(most, magnitude(to_float(weight[i])));
        float scale = float_of(most) / divisor;
        if (scale == 0) scale = 1;
        scales[g] = e4m3_of(std::max(scale, E4M3_SMALLEST));
        float step = float_of_e4m3(scales[g]) * scale_2;
        uint32_t code[GROUP];
        for (size_t i = 0; i < GROUP; i++) code[i] = e2m1_of(to_float(weight[i]) / step);
        for (size_t i = 0; i < GROUP / 2; i++)
            codes[i] = static_cast<uint8_t>(code[2 * i] | code[2 * i + 1] << 4);
    }
}

MULTIVERSION static void unpack(
    const uint8_t *codes, const uint8_t *scales, size_t n_groups, float scale_2, float *weight) {
    static const float VALUES[16] = {0,    0.5f,  1,  1.5f,  2,  3,  4,  6,
                                     -0.f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
    for (size_t g = 0; g < n_groups; g++, codes += GROUP / 2, weight += GROUP) {
        float step = float_of_e4m3(scales[g]) * scale_2;
        for (size_t i = 0; i < GROUP / 2; i++) {
            weight[2 * i] = VALUES[codes[i] & 15] * step;
            weight[2 * i + 1] = VALUES[codes[i] >> 4] * step;
        }
    }
}

// The bytes of a tile of rows in a bundle's order: see weight.h.
static void interleave(const uint8_t *codes, size_t rows, size_t k, uint8_t *to) {
    auto code = [=](size_t row, size_t column) {
        return codes[row * k / 2 + column / 2] >> 4 * (column % 2) & 15;
    };
    for (size_t half = 0; half < k; half += GROUP / 2)
        for (size_t row = 0; row < rows; row++)
            for (size_t column = half; column < half + 4; column++)
                *to++ = static_cast<uint8_t>(code(row, column) | code(row, column + 4) << 4);
}

static void interleave_nvfp4(Input<uint8_t> codes, Output<uint8_t> to) {
    size_t n = codes.shape(0), k = 2 * codes.shape(1);
    require(k % GROUP == 0, "the columns are not a multiple of 16");
    require_shape(to, n, k / 2, "to is not as codes");
    for (size_t row = 0; row < n; row += NVFP4_TILE)
        interleave(codes.data() + row * k / 2, std::min(NVFP4_TILE, n - row), k,
                   to.data() + row * k / 2);
}

template <class Weight, class Bytes>
static void require_layout(const Weight &weight, const Bytes &codes, const Bytes &scales) {
    size_t n = weight.shape(0), k = weight.shape(1);
    require(k % GROUP == 0, "the columns are not a multiple of 16");
    require_shape(codes, n, k / 2, "codes are not [n, k / 2]");
    require_shape(scales, n, k / GROUP, "block_scale is not [n, k / 16]");
}

template <class T>
static void pack_nvfp4(Input<T> weight, float scale_2, Output<uint8_t> codes,
                       Output<uint8_t> block_scale, int n_threads) {
    require_layout(weight, codes, block_scale);
    const T *from = weight.data();
    uint8_t *to = codes.data(), *scales = block_scale.data();
    parallel(weight.size() / GROUP, n_threads, [=](size_t first, size_t last, size_t) {
        pack(from + first * GROUP, last - first, scale_2, to + first * GROUP / 2,
             scales + first);
    });
}

static void unpack_nvfp4(Input<uint8_t> codes, Input<uint8_t> block_scale, float scale_2,
                         Output<float> weight, int n_threads) {
    require_layout(weight, codes, block_scale);
    const uint8_t *from = codes.data(), *scales = block_scale.data();
    float *to = weight.data();
    parallel(weight.size() / GROUP, n_threads, [=](size_t first, size_t last, size_t) {
        unpack(from + first * GROUP / 2, scales + first, last - first, scale_2,
               to + first * GROUP);
    });
}

template <class T>
static void bind_pack(nb::module_ &module) {
    module.def("pack_nvfp4", pack_nvfp4<T>, nb::arg("weight").noconvert(), nb::arg("scale_2"),
               nb::arg("codes").noconvert(), nb::arg("block_scale").noconvert(),
               nb::arg("n_threads"));
}

void bind_nvfp4(nb::module_ &module) {
    bind_pack<float>(module);
    bind_pack<uint16_t>(module);
    module.def("unpack_nvfp4", unpack_nvfp4, nb::arg("codes").noconvert(),
               nb::arg("block_scale").noconvert(), nb::arg("scale_2"),
               nb::arg("weight").noconvert(), nb::arg("n_threads"));
    module.def("interleave_nvfp4", interleave_nvfp4, nb::arg("codes").noconvert(),
               nb::arg("to").noconvert());
}
