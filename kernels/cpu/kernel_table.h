// The inner loops, once for each instruction set that this build holds. One is chosen at run time;
// everything else of a kernel (threads, blocking, memory) is written once, above them.
#pragma once

#include "weight.h"

// A growing sequence's softmax: for each row of queries the largest score so far and the sum of
// exp(score - largest).
struct Softmax {
    float largest, sum;
};

struct KernelTable {
    const char *name;

    // Linears. y[i] = W[i] . x for rows first..last, weights as they are dequantized.
    void (*gemv)(const Matrix &w, size_t first, size_t last, const float *x, float *y);
    // The same in integers: INT4 with a row in 8 bits,
    void (*gemv_int4)(const Matrix &w, size_t first, size_t last, const QuantizedRow &x, float *y);
    void (*quantize_int4)(const float *x, size_t k, const QuantizedRow &to);
    // and NVFP4 with up to panel_rows of them, group by group: group g of row i is x[g * n_x + i].
    // y[i * step + row - first]; `first` begins a tile, `last` ends one.
    void (*product_nvfp4)(const Matrix &w, size_t first, size_t last, const QuantizedGroup *x,
                          size_t n_x, float *y, size_t step);
    // A row of activations to to[0], to[step], ...; k is a multiple of 16.
    void (*quantize_nvfp4)(const float *x, size_t k, QuantizedGroup *to, size_t step);
    size_t panel_rows;
    // W[first + i, column + j] -> to[i * width + j]; column and width multiples of 128, or the end.
    void (*unpack)(const Matrix &w, size_t first, size_t last, size_t column, size_t width,
                   float *to);

    // Products. c[i, j] (+)= sum over t of a[i, t] * b[j, t], or of a[i, t] * b[t, j] where a is
    // stepped through freely. A row is ld apart from the next.
    void (*gemm)(const float *a, size_t lda, size_t n_a, const float *b, size_t ldb, size_t n_b,
                 size_t k, float *c, size_t ldc, bool add);
    void (*gemm_outer)(const float *a, size_t row_step, size_t k_step, size_t n_a, const float *b,
                       size_t ldb, size_t n_b, size_t k, float *c, size_t ldc);

    // Rows.
    void (*rms_norm)(const float *x, const float *weight, size_t n, float eps, float *y);
    void (*gated_rms_norm)(const float *x, const float *gate, const float *weight, size_t n,
                           float eps, float *y);
    void (*relu2)(float *x, size_t n);
    void (*scale)(float *x, float factor, size_t n);
    void (*add_scaled)(const float *x, float factor, float *y, size_t n);  // y += factor * x
    // y[c] = silu(bias[c] + sum over t of taps[t][c] * rows[t][c])
    void (*convolve)(const float *const *rows, const float *taps, size_t stride, size_t n_taps,
                     const float *bias, size_t n, float *y);
    // next[n] = decay * state[n] + x * b[n]; returns next . c
    float (*state_step)(const float *state, float decay, float x, const float *b, const float *c,
                        size_t n, float *next);
    // scores[i] = exp(scores[i] - largest so far); returns what the earlier sums must be scaled by.
    float (*softmax)(float *scores, size_t n, Softmax *running);
};

const KernelTable &kernels();

// The tables of this build that this processor can run, the best first; ends with a null.
const KernelTable *const *runnable_kernels();
void use_kernels(const KernelTable &table);

extern const KernelTable AVX512_KERNELS, AVX_VNNI_KERNELS, AVX2_KERNELS, PORTABLE_KERNELS;
