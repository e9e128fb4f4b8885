// Linears over F32: how each format's bytes become 16 weights, and what is done with them.

// 16 weights of one row at a time: W[j .. j + 16] = raw * FACTOR * step(j). `at` is one weight.
template <Format>
struct Row;

template <>
struct Row<Format::FLOAT32> {
    static constexpr float FACTOR = 1;
    const uint8_t *values;
    Row(const Matrix &w, size_t i) : values(w.values + 4 * i * w.k) {}
    INLINE Sixteen raw(size_t j) const {
        Sixteen w;
        std::memcpy(&w, values + 4 * j, sizeof w);
        return w;
    }
    INLINE float step(size_t) const { return 1; }
    INLINE float at(size_t j) const {
        float x;
        std::memcpy(&x, values + 4 * j, sizeof x);
        return x;
    }
};

template <>
struct Row<Format::BFLOAT16> {
    static constexpr float FACTOR = 1;
    const uint8_t *values;
    Row(const Matrix &w, size_t i) : values(w.values + 2 * i * w.k) {}
    INLINE Sixteen raw(size_t j) const {
        Sixteen w;
        for (size_t p = 0; p < PARTS; p++) w.part[p] = load_bfloat16(values + 2 * (j + LANES * p));
        return w;
    }
    INLINE float step(size_t) const { return 1; }
    INLINE float at(size_t j) const {
        uint16_t bits;
        std::memcpy(&bits, values + 2 * j, sizeof bits);
        return to_float(bits);
    }
};

template <>
struct Row<Format::FP8> {
    static constexpr float FACTOR = 1;
    const uint8_t *values;
    float scale;
    Row(const Matrix &w, size_t i) : values(w.values + i * w.k), scale(w.scale) {}
    INLINE Sixteen raw(size_t j) const { return load_e4m3(values + j); }
    INLINE float step(size_t) const { return scale; }
    INLINE float at(size_t j) const { return float_of_e4m3(values[j]) * scale; }
};

template <>
struct Row<Format::INT4> {
    static constexpr float FACTOR = 1;
    const uint8_t *values, *scales;
    int shift;
    Row(const Matrix &w, size_t i)
        : values(w.values + i / 2 * w.k),
          scales(w.block_scale + i * (w.k / INT4_BLOCK) * 4),
          shift(i % 2 * 4) {}
    INLINE Sixteen raw(size_t j) const { return load_int4(values + j, shift); }
    INLINE float step(size_t j) const {
        float x;
        std::memcpy(&x, scales + j / INT4_BLOCK * 4, sizeof x);
        return x;
    }
    INLINE float at(size_t) const { return 0; }  // no row ends within 16
};

template <>
struct Row<Format::NVFP4> {
    static constexpr float FACTOR = 0.5f;
    size_t rows;  // of the tile
    const uint8_t *values, *scales;
    float scale;
    Row(const Matrix &w, size_t i) : scale(w.scale) {
        size_t tile = i / NVFP4_TILE * NVFP4_TILE;
        rows = w.n - tile < NVFP4_TILE ? w.n - tile : NVFP4_TILE;
        values = w.values + tile * (w.k / 2) + 4 * (i - tile);
        scales = w.block_scale + tile * (w.k / NVFP4_GROUP) + (i - tile);
    }
    INLINE Sixteen raw(size_t j) const {
        const uint8_t *half = values + j / NVFP4_GROUP * 8 * rows;
        return load_e2m1(half, half + 4 * rows);
    }
    INLINE float step(size_t j) const {
        return E4M3_VALUES.of[scales[j / NVFP4_GROUP * rows]] * scale;
    }
    INLINE float at(size_t) const { return 0; }  // no row ends within 16
};

INLINE F32 dot(const Sixteen &w, const float *x, F32 sum) {
    for (size_t p = 0; p < PARTS; p++) sum = fma(w.part[p], load(x + LANES * p), sum);
    return sum;
}

template <Format F>
INLINE F32 dot16(const Row<F> &row, size_t j, const float *x, F32 sum) {
    constexpr bool scaled = F == Format::NVFP4 || F == Format::INT4;
    if constexpr (scaled) return fma(dot(row.raw(j), x + j, zero()), splat(row.step(j)), sum);
    return dot(row.raw(j), x + j, sum);
}

// Bytes; the processor itself does not fetch beyond a page.
constexpr size_t AHEAD = 2048;

template <Format F>
void gemv_rows(const Matrix &w, size_t first, size_t last, const float *x, float *y) {
    for (size_t i = first; i < last; i++) {
        Row<F> row(w, i);
        F32 s[4] = {zero(), zero(), zero(), zero()};
        [[maybe_unused]] NanWatch nan;
        size_t j = 0;
        for (; j + 64 <= w.k; j += 64) {
            for (size_t line = 0; line < value_bytes(F, 64); line += 64)
                prefetch(row.values + value_bytes(F, j) + line + AHEAD);
            if constexpr (F == Format::FP8) {
                nan.see(row.values + j);
                dot64_e4m3(row.values + j, x + j, s);
            } else {
                for (size_t t = 0; t < 4; t++) s[t] = dot16<F>(row, j + 16 * t, x, s[t]);
            }
        }
        float total = sum((s[0] + s[1]) + (s[2] + s[3]));
        if constexpr (F == Format::FP8) total = nan.seen() ? NAN : total * DOT_E4M3_FACTOR;
        s[0] = zero();
        for (; j + 16 <= w.k; j += 16) s[0] = dot16<F>(row, j, x, s[0]);
        total = (total + sum(s[0])) * Row<F>::FACTOR;
        if constexpr (F == Format::FP8) total *= w.scale;
        for (; j < w.k; j++) total += row.at(j) * x[j];
        y[i] = total;
    }
}

template <Format F>
void unpack_rows(const Matrix &w, size_t first, size_t last, size_t column, size_t width,
                 float *to) {
    for (size_t i = first; i < last; i++, to += width) {
        Row<F> row(w, i);
        size_t j = 0;
        for (; j + 16 <= width; j += 16) {
            Sixteen weights = row.raw(column + j);
            F32 step = splat(row.step(column + j));
            for (size_t p = 0; p < PARTS; p++)
                store(to + j + LANES * p, weights.part[p] * splat(Row<F>::FACTOR) * step);
        }
        for (; j < width; j++) to[j] = row.at(column + j);
    }
}

// Calls what.template operator()<format> for the matrix's own format.
#define FOR_FORMAT(format, function, ...)                                          \
    switch (format) {                                                              \
        case Format::FLOAT32: return function<Format::FLOAT32>(__VA_ARGS__);       \
        case Format::BFLOAT16: return function<Format::BFLOAT16>(__VA_ARGS__);     \
        case Format::FP8: return function<Format::FP8>(__VA_ARGS__);               \
        case Format::INT4: return function<Format::INT4>(__VA_ARGS__);             \
        case Format::NVFP4: return function<Format::NVFP4>(__VA_ARGS__);           \
    }

void gemv(const Matrix &w, size_t first, size_t last, const float *x, float *y) {
    FOR_FORMAT(w.format, gemv_rows, w, first, last, x, y)
}

void unpack(const Matrix &w, size_t first, size_t last, size_t column, size_t width, float *to) {
    FOR_FORMAT(w.format, unpack_rows, w, first, last, column, width, to)
}
