// numpy arrays as the kernels take them.
#pragma once

#include "kernels.h"
#include "linear.h"

#include <optional>

// Rows may be apart from one another, so that a part of wider rows is passed as it lies.
using RowsArray = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using MutableRowsArray = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;

template <class Array>
auto rows_of(const Array &array, const char *message) {
    size_t n = array.shape(0), width = array.shape(1);
    bool whole = n == 0 || width < 2 || array.stride(1) == 1;
    require(whole && (n < 2 || array.stride(0) >= static_cast<int64_t>(width)), message);
    size_t step = n < 2 ? width : static_cast<size_t>(array.stride(0));
    return RowsOf<std::remove_pointer_t<decltype(array.data())>>{array.data(), n, width, step};
}

// The interpreter's lock, given to other threads for work that takes longer than to get it back.
// Beside a busy thread that takes a switch interval (edge/startup.py), at each kernel of a step.
class LetOthersRun {
    static constexpr size_t LONG = 1 << 22;  // multiplications: a millisecond on a slow core
    std::optional<nb::gil_scoped_release> release;

  public:
    explicit LetOthersRun(size_t n_multiplications) {
        if (n_multiplications >= LONG) release.emplace();
    }
};
