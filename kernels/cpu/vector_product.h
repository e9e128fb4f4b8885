// Matrix products over F32. All operands are float32 and near: a caller blocks for the caches.

// c[i, j] += sum over the last few t.
__attribute__((noinline)) void rest(const float *a, size_t lda, size_t n_a, const float *b,
                                    size_t ldb, size_t n_b, size_t k, float *c, size_t ldc) {
    for (size_t i = 0; i < n_a; i++)
        for (size_t j = 0; j < n_b; j++)
            for (size_t t = 0; t < k; t++) c[i * ldc + j] += a[i * lda + t] * b[j * ldb + t];
}

// NA rows of a with NB rows of b: NA * NB sums in registers. FETCH: the next rows of a come near
// meanwhile; with many rows they wait in a farther cache.
template <size_t NA, size_t NB, bool FETCH = false>
INLINE void tile(const float *a, size_t lda, const float *b, size_t ldb, size_t k, float *c,
                 size_t ldc, bool add) {
    static_assert(NB == 4 || NB == 1, "sums come four at a time or alone");
    F32 s[NA][NB];
    for (size_t i = 0; i < NA; i++)
        for (size_t j = 0; j < NB; j++) s[i][j] = zero();
    size_t whole = k / LANES * LANES;
    for (size_t t = 0; t < whole; t += LANES) {
        F32 x[NA];
        for (size_t i = 0; i < NA; i++) x[i] = load(a + i * lda + t);
        if constexpr (FETCH)
            for (size_t i = 0; i < NA; i++) prefetch(a + (NA + i) * lda + t);
        for (size_t j = 0; j < NB; j++) {
            F32 w = load(b + j * ldb + t);
            for (size_t i = 0; i < NA; i++) s[i][j] = fma(x[i], w, s[i][j]);
        }
    }
    for (size_t i = 0; i < NA; i++) {
        if constexpr (NB == 4)
            add_sums(s[i][0], s[i][1], s[i][2], s[i][3], add, c + i * ldc);
        else
            c[i * ldc] = (add ? c[i * ldc] : 0) + sum(s[i][0]);
    }
    if (whole < k) rest(a + whole, lda, NA, b + whole, ldb, NB, k - whole, c, ldc);
}

template <size_t NA>
void tiles(const float *a, size_t lda, const float *b, size_t ldb, size_t n_b, size_t k, float *c,
           size_t ldc, bool add) {
    size_t j = 0;
    if (n_b >= 4) tile<NA, 4, true>(a, lda, b, ldb, k, c, ldc, add), j = 4;
    for (; j + 4 <= n_b; j += 4) tile<NA, 4>(a, lda, b + j * ldb, ldb, k, c + j, ldc, add);
    for (; j < n_b; j++) tile<NA, 1>(a, lda, b + j * ldb, ldb, k, c + j, ldc, add);
}

// As many rows of a as sums have registers for; what is left over goes by one size less each time.
template <size_t NA>
void row_tiles(const float *a, size_t lda, size_t n_a, const float *b, size_t ldb, size_t n_b,
               size_t k, float *c, size_t ldc, bool add) {
    size_t i = 0;
    for (; i + NA <= n_a; i += NA) tiles<NA>(a + i * lda, lda, b, ldb, n_b, k, c + i * ldc, ldc, add);
    if constexpr (NA > 1)
        if (i < n_a) row_tiles<NA - 1>(a + i * lda, lda, n_a - i, b, ldb, n_b, k, c + i * ldc, ldc, add);
}

void gemm(const float *a, size_t lda, size_t n_a, const float *b, size_t ldb, size_t n_b, size_t k,
          float *c, size_t ldc, bool add) {
    row_tiles<TILE_ROWS>(a, lda, n_a, b, ldb, n_b, k, c, ldc, add);
}

template <size_t NA, size_t VECTORS>
INLINE void outer_tile(const float *a, size_t row_step, size_t k_step, const float *b, size_t ldb,
                       size_t k, float *c, size_t ldc) {
    F32 s[NA][VECTORS];
    for (size_t i = 0; i < NA; i++)
        for (size_t v = 0; v < VECTORS; v++) s[i][v] = load(c + i * ldc + LANES * v);
    for (size_t t = 0; t < k; t++) {
        F32 x[VECTORS];
        for (size_t v = 0; v < VECTORS; v++) x[v] = load(b + t * ldb + LANES * v);
        for (size_t i = 0; i < NA; i++) {
            F32 w = splat(a[i * row_step + t * k_step]);
            for (size_t v = 0; v < VECTORS; v++) s[i][v] = fma(w, x[v], s[i][v]);
        }
    }
    for (size_t i = 0; i < NA; i++)
        for (size_t v = 0; v < VECTORS; v++) store(c + i * ldc + LANES * v, s[i][v]);
}

template <size_t NA>
void outer_tiles(const float *a, size_t row_step, size_t k_step, const float *b, size_t ldb,
                 size_t n_b, size_t k, float *c, size_t ldc) {
    size_t j = 0;
    for (; j + 2 * LANES <= n_b; j += 2 * LANES)
        outer_tile<NA, 2>(a, row_step, k_step, b + j, ldb, k, c + j, ldc);
    for (; j + LANES <= n_b; j += LANES)
        outer_tile<NA, 1>(a, row_step, k_step, b + j, ldb, k, c + j, ldc);
    for (; j < n_b; j++)
        for (size_t i = 0; i < NA; i++)
            for (size_t t = 0; t < k; t++)
                c[i * ldc + j] += a[i * row_step + t * k_step] * b[t * ldb + j];
}

void gemm_outer(const float *a, size_t row_step, size_t k_step, size_t n_a, const float *b,
                size_t ldb, size_t n_b, size_t k, float *c, size_t ldc) {
    size_t i = 0;
    for (; i + 4 <= n_a; i += 4)
        outer_tiles<4>(a + i * row_step, row_step, k_step, b, ldb, n_b, k, c + i * ldc, ldc);
    for (; i < n_a; i++)
        outer_tiles<1>(a + i * row_step, row_step, k_step, b, ldb, n_b, k, c + i * ldc, ldc);
}
