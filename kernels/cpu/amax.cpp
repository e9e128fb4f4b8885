// The largest magnitude of a weight.
#include "kernels.h"

template <class T>
MULTIVERSION static uint32_t largest(const T *x, size_t n) {
    uint32_t most = 0;
    for (size_t i = 0; i < n; i++) most = std::max(most, magnitude(to_float(x[i])));
    return most;
}

template <class T>
static float amax(Input<T> weight, int n_threads) {
    const T *data = weight.data();
    std::vector<uint32_t> most(std::max<size_t>(1, n_pieces(weight.size())));
    parallel(weight.size(), n_threads, [&](size_t first, size_t last, size_t piece) {
        most[piece] = largest(data + first, last - first);
    });
    return float_of(*std::max_element(most.begin(), most.end()));
}

void bind_amax(nb::module_ &module) {
    module.def("amax", amax<float>, nb::arg("weight").noconvert(), nb::arg("n_threads"));
    module.def("amax", amax<uint16_t>, nb::arg("weight").noconvert(), nb::arg("n_threads"));
}
