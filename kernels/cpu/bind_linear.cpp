// Linears and routed experts for Python.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>

#include "arrays.h"
#include "linear.h"
#include "pool.h"

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// A good half of what one core's idle time between two linears can fetch, and of a small cache.
constexpr size_t AHEAD_BYTES = 512 << 10;

static Format format_named(const std::string &name) {
    if (name == "float32") return Format::FLOAT32;
    if (name == "bfloat16") return Format::BFLOAT16;
    if (name == "fp8") return Format::FP8;
    if (name == "int4") return Format::INT4;
    require(name == "nvfp4", "format is none of float32, bfloat16, fp8, int4, nvfp4");
    return Format::NVFP4;
}

// A stack of matrices over arrays of Python, which it keeps alive.
struct Weight {
    Bytes values;
    std::optional<Bytes> block_scale;
    std::optional<Floats> scales;
    Stack stack;

    Weight(const std::string &format, size_t n_matrices, size_t n, size_t k, Bytes values_,
           std::optional<Bytes> block_scale_, std::optional<Floats> scales_)
        : values(std::move(values_)),
          block_scale(std::move(block_scale_)),
          scales(std::move(scales_)),
          stack{format_named(format), n_matrices, n, k, values.data(),
                block_scale ? block_scale->data() : nullptr, scales ? scales->data() : nullptr} {
        Format f = stack.format;
        size_t group = f == Format::NVFP4 ? NVFP4_GROUP : f == Format::INT4 ? INT4_BLOCK : 1;
        require(k % group == 0, "the columns are not a multiple of the format's block");
        require(f != Format::INT4 || n % 2 == 0, "the rows of an int4 weight are odd");
        size_t rows = n_matrices * n;
        require(values.size() == rows * value_bytes(f, k), "values have not the weight's size");
        require((block_scale ? block_scale->size() : 0) == rows * scale_bytes(f, k),
                "block_scale has not the weight's size");
        bool scaled = f == Format::FP8 || f == Format::NVFP4;
        require((scales ? scales->size() : 0) == (scaled ? n_matrices : 0),
                "scales have not one value for each matrix");
    }
};

static void linear_(const Weight &weight, RowsArray x, MutableRowsArray y, bool exact) {
    require(weight.stack.n_matrices == 1, "weight is a stack of several matrices");
    Rows from = rows_of(x, "x has not contiguous rows");
    MutableRows to = rows_of(y, "y has not contiguous rows");
    require(from.width == weight.stack.k, "x is not [rows, k]");
    require(to.n == from.n && to.width == weight.stack.n, "y is not [rows, n]");
    LetOthersRun release(from.n * weight.stack.n * weight.stack.k);
    linear(weight.stack.matrix(0), from, to, exact);
}

static void will_read(const Weight &weight) {
    bool known = weight.stack.n_matrices == 1;  // of experts, only the router will say which
    pool::will_read(weight.values.data(), known ? std::min(weight.values.size(), AHEAD_BYTES) : 0);
}

static void experts_(const Weight &up, const Weight &down, RowsArray x, Ids ids,
                     RowsArray weights, MutableRowsArray y, bool exact) {
    Rows from = rows_of(x, "x has not contiguous rows");
    Rows shares = rows_of(weights, "weights have not contiguous rows");
    MutableRows to = rows_of(y, "y has not contiguous rows");
    size_t n_slots = ids.shape(1);
    require(up.stack.n_matrices == down.stack.n_matrices, "up and down differ in their number");
    require(up.stack.n == down.stack.k, "down does not take what up gives");
    require(from.width == up.stack.k, "x is not [rows, k]");
    require(to.n == from.n && to.width == down.stack.n, "y is not [rows, n]");
    require(ids.shape(0) == from.n && shares.n == from.n, "ids and weights are not [rows, slots]");
    require(shares.width == n_slots && (shares.step == n_slots || from.n < 2),
            "weights are not as ids");
    require(0 < n_slots && n_slots <= MAX_SLOTS, "a row takes no expert, or more than 64");
    for (size_t i = 0; i < ids.size(); i++)
        require(0 <= ids.data()[i] && size_t(ids.data()[i]) < up.stack.n_matrices,
                "ids name an expert that does not exist");
    LetOthersRun release(from.n * n_slots * (up.stack.n * up.stack.k + down.stack.n * down.stack.k));
    experts(up.stack, down.stack, from, ids.data(), shares.data, n_slots, to, exact);
}

void bind_linear(nb::module_ &module) {
    nb::class_<Weight>(module, "Weight")
        .def(nb::init<const std::string &, size_t, size_t, size_t, Bytes, std::optional<Bytes>,
                      std::optional<Floats>>(),
             nb::arg("format"), nb::arg("n_matrices"), nb::arg("n"), nb::arg("k"),
             nb::arg("values").noconvert(), nb::arg("block_scale").noconvert().none(),
             nb::arg("scales").noconvert().none())
        .def_prop_ro("n", [](const Weight &w) { return w.stack.n; })
        .def_prop_ro("k", [](const Weight &w) { return w.stack.k; });
    module.def("will_read", will_read, nb::arg("weight"));
    module.def("linear", linear_, nb::arg("weight"), nb::arg("x").noconvert(),
               nb::arg("y").noconvert(), nb::arg("exact"));
    module.def("experts", experts_, nb::arg("up"), nb::arg("down"), nb::arg("x").noconvert(),
               nb::arg("ids").noconvert(), nb::arg("weights").noconvert(),
               nb::arg("y").noconvert(), nb::arg("exact"));
}
