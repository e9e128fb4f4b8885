// FP8: E4M3 codes and one float32 scale for the tensor.
#include "kernels.h"

// ModelOpt divides in the weight's own dtype, so a bfloat16 weight is rounded twice.
INLINE float quotient(float weight, float scale) { return weight / scale; }
INLINE float quotient(uint16_t weight, float scale) {
    return round_to_bfloat16(to_float(weight) / scale);
}

template <class T>
MULTIVERSION static void pack(const T *weight, size_t n, float scale, uint8_t *codes) {
    for (size_t i = 0; i < n; i++) codes[i] = e4m3_of(quotient(weight[i], scale));
}

MULTIVERSION static void unpack(const uint8_t *codes, size_t n, float scale, float *weight) {
    for (size_t i = 0; i < n; i++) weight[i] = float_of_e4m3(codes[i]) * scale;
}

template <class T>
static void pack_fp8(Input<T> weight, float scale, Output<uint8_t> codes, int n_threads) {
    require_shape(codes, weight.shape(0), weight.shape(1), "codes are not [n, k]");
    const T *from = weight.data();
    uint8_t *to = codes.data();
    parallel(weight.size(), n_threads, [=](size_t first, size_t last, size_t) {
        pack(from + first, last - first, scale, to + first);
    });
}

static void unpack_fp8(Input<uint8_t> codes, float scale, Output<float> weight, int n_threads) {
    require_shape(codes, weight.shape(0), weight.shape(1), "codes are not [n, k]");
    const uint8_t *from = codes.data();
    float *to = weight.data();
    parallel(weight.size(), n_threads, [=](size_t first, size_t last, size_t) {
        unpack(from + first, last - first, scale, to + first);
    });
}

template <class T>
static void bind_pack(nb::module_ &module) {
    module.def("pack_fp8", pack_fp8<T>, nb::arg("weight").noconvert(), nb::arg("scale"),
               nb::arg("codes").noconvert(), nb::arg("n_threads"));
}

void bind_fp8(nb::module_ &module) {
    bind_pack<float>(module);
    bind_pack<uint16_t>(module);
    module.def("unpack_fp8", unpack_fp8, nb::arg("codes").noconvert(), nb::arg("scale"),
               nb::arg("weight").noconvert(), nb::arg("n_threads"));
}
