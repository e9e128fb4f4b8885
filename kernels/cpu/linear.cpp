#include "linear.h"

#include <algorithm>

#include "buffer.h"
#include "pool.h"

// A piece of a matrix-vector product reads this much: about 5 microseconds.
constexpr size_t PIECE_BYTES = 64 << 10;

size_t rows_per_piece(const Matrix &w) {
    size_t rows = PIECE_BYTES / std::max<size_t>(1, value_bytes(w.format, w.k));
    return std::max<size_t>(2, rows / 2 * 2);
}

Quantized quantized(Format format, const float *x, size_t k, size_t slot) {
    static thread_local Buffer codes[MAX_QUANTIZED], scales[MAX_QUANTIZED], offsets[MAX_QUANTIZED];
    size_t padded = (k + 127) / 128 * 128;
    Quantized to{codes[slot].of<int8_t>(padded), scales[slot].of<float>(padded / 4),
                 offsets[slot].of<int32_t>(padded / 4)};
    kernels().quantize(format, x, k, to);
    return to;
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

void linear(const Matrix &w, Rows x, MutableRows y, bool exact) {
    if (x.n > 1) return many_rows(w, x, y);
    if (x.n == 0) return;
    if (exact || !takes_quantized(w.format))
        return pool::ranges(w.n, rows_per_piece(w), [&](size_t first, size_t last) {
            kernels().gemv(w, first, last, x.data, y.data);
        });
    Quantized codes = quantized(w.format, x.data, w.k, 0);
    pool::ranges(w.n, rows_per_piece(w), [&](size_t first, size_t last) {
        kernels().gemv_quantized(w, first, last, codes, y.data);
    });
}
