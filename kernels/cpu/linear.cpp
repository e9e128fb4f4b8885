#include "linear.h"

#include <algorithm>

#include "buffer.h"
#include "pool.h"

// A panel of 16 rows by 512 columns of dequantized weights is 32 KB: it stays in the first cache
// while all tokens pass, three at a time with 6 KB.
constexpr size_t PANEL_COLUMNS = 512;
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

void product(const Matrix &w, size_t first, size_t last, Rows x, MutableRows y) {
    static thread_local Buffer buffer;
    float *panel = buffer.of<float>(PRODUCT_ROWS * PANEL_COLUMNS);
    for (size_t column = 0; column < w.k; column += PANEL_COLUMNS) {
        size_t width = std::min(PANEL_COLUMNS, w.k - column);
        kernels().unpack(w, first, last, column, width, panel);
        kernels().gemm(x.data + column, x.step, x.n, panel, width, last - first, width,
                       y.data, y.step, column > 0);
    }
}

void linear(const Matrix &w, Rows x, MutableRows y, bool exact) {
    if (x.n > 1)
        return pool::ranges(w.n, PRODUCT_ROWS, [&](size_t first, size_t last) {
            product(w, first, last, x, {y.data + first, y.n, last - first, y.step});
        });
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
