// INT4: signed 4-bit codes with a float32 scale for every 128 along a row. A byte holds the same
// column of two rows: the even row in its low half, the odd row in its high half.
#include "kernels.h"

constexpr size_t BLOCK = 128;
constexpr float INT4_MAX = 7.0f;

// The scale of one block. A block of zeros gets 1; the smallest amax is the smallest normal number.
template <class T>
INLINE float scale_of(const T *weight) {
    uint32_t most = 0;
    for (size_t i = 0; i < BLOCK; i++) most = std::max(most, magnitude(to_float(weight[i])));
    return most == 0 ? 1.0f : std::max(float_of(most), 0x1p-126f) / INT4_MAX;
}

INLINE int int4_of(float x) {
    return static_cast<int>(std::nearbyint(std::max(-8.0f, std::min(x, 7.0f))));
}

// Two rows of n_blocks blocks: `even`, and `odd` behind it.
template <class T>
MULTIVERSION static void pack(const T *even, size_t n_blocks, uint8_t *codes, float *scales) {
    const T *odd = even + n_blocks * BLOCK;
    for (size_t b = 0; b < n_blocks; b++, even += BLOCK, odd += BLOCK, codes += BLOCK) {
        float low = scales[b] = scale_of(even);
        float high = scales[n_blocks + b] = scale_of(odd);
        for (size_t i = 0; i < BLOCK; i++)
            codes[i] = static_cast<uint8_t>((int4_of(to_float(even[i]) / low) & 15) |
                                            (int4_of(to_float(odd[i]) / high) & 15) << 4);
    }
}

MULTIVERSION static void unpack(
    const uint8_t *codes, const float *scales, size_t n_blocks, float *even) {
    float *odd = even + n_blocks * BLOCK;
    for (size_t b = 0; b < n_blocks; b++, even += BLOCK, odd += BLOCK, codes += BLOCK)
        for (size_t i = 0; i < BLOCK; i++) {
            even[i] = static_cast<float>(static_cast<int8_t>(codes[i] << 4) >> 4) * scales[b];
            odd[i] = static_cast<float>(static_cast<int8_t>(codes[i]) >> 4) * scales[n_blocks + b];
        }
}

template <class Weight, class Bytes, class Scales>
static void require_layout(const Weight &weight, const Bytes &codes, const Scales &scales) {
    size_t n = weight.shape(0), k = weight.shape(1);
    require(n % 2 == 0 && k % BLOCK == 0, "the rows are odd or the columns not a multiple of 128");
    require_shape(codes, n / 2, k, "codes are not [n / 2, k]");
    require_shape(scales, n, k / BLOCK, "block_scale is not [n, k / 128]");
}

template <class T>
static void pack_int4(
    Input<T> weight, Output<uint8_t> codes, Output<float> block_scale, int n_threads) {
    require_layout(weight, codes, block_scale);
    const T *from = weight.data();
    uint8_t *to = codes.data();
    float *scales = block_scale.data();
    size_t k = weight.shape(1), n_blocks = k / BLOCK;
    parallel(codes.shape(0), n_threads, [=](size_t first, size_t last, size_t) {
        for (size_t pair = first; pair < last; pair++)
            pack(from + pair * 2 * k, n_blocks, to + pair * k, scales + pair * 2 * n_blocks);
    });
}

static void unpack_int4(
    Input<uint8_t> codes, Input<float> block_scale, Output<float> weight, int n_threads) {
    require_layout(weight, codes, block_scale);
    const uint8_t *from = codes.data();
    const float *scales = block_scale.data();
    float *to = weight.data();
    size_t k = weight.shape(1), n_blocks = k / BLOCK;
    parallel(codes.shape(0), n_threads, [=](size_t first, size_t last, size_t) {
        for (size_t pair = first; pair < last; pair++)
            unpack(from + pair * k, scales + pair * 2 * n_blocks, n_blocks, to + pair * 2 * k);
    });
}

template <class T>
static void bind_pack(nb::module_ &module) {
    module.def("pack_int4", pack_int4<T>, nb::arg("weight").noconvert(),
               nb::arg("codes").noconvert(), nb::arg("block_scale").noconvert(),
               nb::arg("n_threads"));
}

void bind_int4(nb::module_ &module) {
    bind_pack<float>(module);
    bind_pack<uint16_t>(module);
    module.def("unpack_int4", unpack_int4, nb::arg("codes").noconvert(),
               nb::arg("block_scale").noconvert(), nb::arg("weight").noconvert(),
               nb::arg("n_threads"));
}
