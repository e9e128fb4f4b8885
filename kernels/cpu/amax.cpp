// The largest magnitude of a weight.
#include "floats.h"

template <class T>
MULTIVERSION static uint32_t largest(const T *x, size_t n) {
    uint32_t most = 0;
    for (size_t i = 0; i < n; i++) most = std::max(most, magnitude(to_float(x[i])));
    return most;
}

template <class T>
static float amax(Input<T> weight, int n_threads) {
    const T *data = weight.data();
    std::vector<uint32_t> most(thread_count(weight.size(), n_threads));
    parallel(weight.size(), n_threads, [&](size_t first, size_t last, int thread) {
        most[thread] = largest(data + first, last - first);
    });
    return float_of(*std::max_element(most.begin(), most.end()));
}

void bind_amax(nb::module_ &module) {
    module.def("amax", amax<float>, nb::arg("weight").noconvert(), nb::arg("n_threads"));
    module.def("amax", amax<uint16_t>, nb::arg("weight").noconvert(), nb::arg("n_threads"));
}
