#include "linear.h"

#include <algorithm>

#include "buffer.h"
#include "pool.h"

// A piece of a matrix-vector product reads this much: about 5 microseconds.
constexpr size_t PIECE_BYTES = 64 << 10;

size_t rows_per_piece(const Matrix &w, size_t share) {
    size_t tile = w.format == Format::NVFP4 ? NVFP4_TILE : 2;
    size_t rows = PIECE_BYTES / std::max<size_t>(1, value_bytes(w.format, w.k) * share);
    return std::max(tile, rows / tile * tile);
}

QuantizedRow quantized_row(const float *x, size_t k, size_t slot) {
    static thread_local Buffer codes[MAX_SLOTS], scales[MAX_SLOTS], offsets[MAX_SLOTS];
    QuantizedRow to{codes[slot].of<int8_t>(k), scales[slot].of<float>(k / 4),
                    offsets[slot].of<int32_t>(k / 4)};
    kernels().quantize_int4(x, k, to);
    return to;
}

void Panels::set_row(size_t i, const float *x) const {
    size_t panel = i / kernels().panel_rows;
    kernels().quantize_nvfp4(x, n_groups * NVFP4_GROUP,
                             data + first(panel) * n_groups + (i - first(panel)), rows(panel));
}

void Panels::product(const Matrix &w, size_t from, size_t to, MutableRows y) const {
    for (size_t panel = 0; panel < count(); panel++)
        kernels().product_nvfp4(w, from, to, data + first(panel) * n_groups, rows(panel),
                                y.row(first(panel)), y.step);
}

void product(const Matrix &w, size_t first, size_t last, const Blocked &x, size_t begin, size_t end,
             MutableRows y) {
    static thread_local Buffer buffer;
    // 32 KB of dequantized weights stay in the first cache while all rows pass, three at a time.
    float *panel = buffer.of<float>(PRODUCT_ROWS * BLOCK_COLUMNS);
    for (size_t column = 0; column < w.k; column += BLOCK_COLUMNS) {
        size_t width = std::min(BLOCK_COLUMNS, w.k - column);
        kernels().unpack(w, first, last, column, width, panel);
        kernels().gemm(x.at(begin, column), x.step(column), end - begin, panel, width, last - first,
                       width, y.data, y.step, column > 0);
    }
}

static void many_rows(const Matrix &w, Rows x, MutableRows y) {
    static thread_local Buffer buffer;
    Blocked blocked{buffer.of<float>(x.n * Blocked::padded(w.k)), x.n, w.k};
    pool::ranges(x.n, 16, [&](size_t first, size_t last) {
        for (size_t i = first; i < last; i++) blocked.set_row(i, x.row(i));
    });
    pool::ranges(w.n, PRODUCT_ROWS, [&](size_t first, size_t last) {
        product(w, first, last, blocked, 0, x.n, {y.data + first, y.n, last - first, y.step});
    });
}

static void nvfp4(const Matrix &w, Rows x, MutableRows y) {
    static thread_local Buffer buffer;
    size_t n_groups = w.k / NVFP4_GROUP;
    Panels panels{buffer.of<QuantizedGroup>(x.n * n_groups), x.n, n_groups};
    pool::ranges(x.n, 8, [&](size_t first, size_t last) {
        for (size_t i = first; i < last; i++) panels.set_row(i, x.row(i));
    });
    pool::ranges(w.n, rows_per_piece(w, x.n), [&](size_t first, size_t last) {
        panels.product(w, first, last, {y.data + first, y.n, last - first, y.step});
    });
}

void linear(const Matrix &w, Rows x, MutableRows y, bool exact) {
    if (x.n == 0) return;
    if (!exact && w.format == Format::NVFP4) return nvfp4(w, x, y);
    if (x.n > 1) return many_rows(w, x, y);
    if (exact || w.format != Format::INT4)
        return pool::ranges(w.n, rows_per_piece(w), [&](size_t first, size_t last) {
            kernels().gemv(w, first, last, x.data, y.data);
        });
    QuantizedRow row = quantized_row(x.data, w.k, 0);
    pool::ranges(w.n, rows_per_piece(w), [&](size_t first, size_t last) {
        kernels().gemv_int4(w, first, last, row, y.data);
    });
}
