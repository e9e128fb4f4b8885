// Linears and routed experts.
#pragma once

#include <algorithm>

#include "kernel_table.h"

// float32 rows [n, width]; a row is `step` values behind the one before.
template <class T>
struct RowsOf {
    T *data;
    size_t n, width, step;
    T *row(size_t i) const { return data + i * step; }
};
using Rows = RowsOf<const float>;
using MutableRows = RowsOf<float>;

// A stack of matrices of one shape; a plain weight is a stack of one.
struct Stack {
    Format format;
    size_t n_matrices, n, k;
    const uint8_t *values, *block_scale;
    const float *scales;

    Matrix matrix(size_t i) const {
        return {format, n, k,
                values + i * n * value_bytes(format, k),
                block_scale ? block_scale + i * n * scale_bytes(format, k) : nullptr,
                scales ? scales[i] : 1.0f};
    }
};

// y = x @ W^T. `exact` keeps the activations in float32; otherwise all rows meet NVFP4 weights and a
// single one INT4 weights as 8-bit codes.
void linear(const Matrix &w, Rows x, MutableRows y, bool exact);

// y[i] = sum over slots of weights[i, slot] * down[e](relu(up[e](x[i]))^2), e = ids[i, slot].
void experts(const Stack &up, const Stack &down, Rows x, const int32_t *ids, const float *weights,
             size_t n_slots, MutableRows y, bool exact);

// Rows of activations in 8 bits as NVFP4 products take them: in panels of panel_rows, the last with
// what is left, each group by group.
struct Panels {
    QuantizedGroup *data;  // room for n * n_groups
    size_t n, n_groups;

    size_t count() const { return (n + kernels().panel_rows - 1) / kernels().panel_rows; }
    size_t first(size_t panel) const { return panel * kernels().panel_rows; }
    size_t rows(size_t panel) const { return std::min(kernels().panel_rows, n - first(panel)); }
    void set_row(size_t i, const float *x) const;
    // Columns first .. last of x @ W^T, into y [n, last - first].
    void product(const Matrix &w, size_t first, size_t last, MutableRows y) const;
};

constexpr size_t MAX_SLOTS = 64;  // experts of a row

// x for INT4 weights, in memory that the calling thread reuses for each `slot`.
QuantizedRow quantized_row(const float *x, size_t k, size_t slot);

// Rows of a matrix that one piece of work takes: enough to outweigh handing it out, and whole tiles.
// `share`: as many matrices are read for each row.
size_t rows_per_piece(const Matrix &w, size_t share = 1);

// Rows of activations as a product reads them: blocks of 512 columns, a block's rows one behind the
// other and aligned, so that neighbouring rows share pages and no load crosses a cache line.
constexpr size_t BLOCK_COLUMNS = 512;
struct Blocked {
    float *data;  // room for n * padded(k), aligned to 64 bytes
    size_t n, k;

    static size_t padded(size_t k) { return (k + 15) / 16 * 16; }
    // Between two rows of the block that begins at this column.
    size_t step(size_t begin) const { return std::min(BLOCK_COLUMNS, padded(k - begin)); }
    // Row i from this column on, to the end of the column's block.
    float *at(size_t i, size_t column) const {
        size_t begin = column / BLOCK_COLUMNS * BLOCK_COLUMNS;
        return data + begin * n + i * step(begin) + column % BLOCK_COLUMNS;
    }
    void set_row(size_t i, const float *from) const {
        for (size_t column = 0; column < k; column += BLOCK_COLUMNS)
            std::copy_n(from + column, std::min(BLOCK_COLUMNS, k - column), at(i, column));
    }
};

// Columns first .. last of x[begin .. end] @ W^T, into y [end - begin, last - first].
void product(const Matrix &w, size_t first, size_t last, const Blocked &x, size_t begin, size_t end,
             MutableRows y);
constexpr size_t PRODUCT_ROWS = 16;
