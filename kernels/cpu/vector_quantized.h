// Products in integers: 4-bit weight codes with 8-bit activation codes. A weight's scale, an
// activation's scale and the integer sum meet in float32, once for each group of 16 columns (NVFP4)
// or each lane of a step (INT4).

// Below this a group of activations counts as zero: 127 / amax must stay finite.
constexpr float SMALLEST_AMAX = 0x1p-100f;

// 16 activations -> codes; returns their scale. A NaN or an infinity makes the scale NaN.
INLINE float quantize16(const float *x, int8_t *codes) {
    Sixteen values;
    F32 largest = zero(), total = zero();
    for (size_t p = 0; p < PARTS; p++) {
        values.part[p] = load(x + LANES * p);
        largest = max(largest, magnitude(values.part[p]));
        total = total + values.part[p];
    }
    float lanes[LANES], amax = 0;
    store(lanes, largest);
    for (float lane : lanes) amax = lane > amax ? lane : amax;
    float inverse = amax < SMALLEST_AMAX ? 0 : 127 / amax;
    for (size_t p = 0; p < PARTS; p++) values.part[p] = values.part[p] * splat(inverse);
    store_codes(codes, values);
    return amax / 127 + sum(total * splat(0));
}

INLINE int32_t sum_of(const int8_t *codes, size_t n) {
    int32_t total = 0;
    for (size_t i = 0; i < n; i++) total += codes[i];
    return total;
}

void quantize_nvfp4(const float *x, size_t k, QuantizedGroup *to, size_t step) {
    for (size_t j = 0; j < k; j += NVFP4_GROUP, to += step) {
        to->scale = quantize16(x + j, to->codes);
        to->offset = NVFP4_OFFSET * sum_of(to->codes, NVFP4_GROUP);
    }
}

// k is a multiple of 128.
void quantize_int4(const float *x, size_t k, const QuantizedRow &to) {
    float *scales = to.scales;
    int32_t *offsets = to.offsets;
    for (size_t j = 0; j < k; j += 16) {
        int8_t *codes = to.codes + j;
        float scale = quantize16(x + j, codes);
        for (size_t lane = 0; lane < 16; lane += 4) {
            *scales++ = scale;
            *offsets++ = INT4_OFFSET * sum_of(codes + lane, 4);
        }
    }
}

constexpr size_t TILE_PARTS = NVFP4_TILE / LANES;

// N_PARTS * LANES rows of a whole tile with N_X rows of activations.
template <size_t N_X, size_t N_PARTS>
INLINE void tile_nvfp4(const uint8_t *codes, const uint8_t *scales, size_t n_groups,
                       const QuantizedGroup *x, float factor, float *y, size_t step) {
    F32 sums[N_X][N_PARTS];
    for (size_t i = 0; i < N_X; i++)
        for (size_t p = 0; p < N_PARTS; p++) sums[i][p] = zero();
    for (size_t g = 0; g < n_groups; g += GROUPS_AT_ONCE) {
        F32 steps[N_PARTS][GROUPS_AT_ONCE];
        uint8_t last[NVFP4_TILE * GROUPS_AT_ONCE] = {};
        const size_t n = n_groups - g < GROUPS_AT_ONCE ? n_groups - g : GROUPS_AT_ONCE;
        const uint8_t *from = scales + g * NVFP4_TILE;
        if (n < GROUPS_AT_ONCE) {
            std::memcpy(last, from, n * NVFP4_TILE);
            from = last;
        }
        prefetch(scales + g * NVFP4_TILE + AHEAD / 8);
        for (size_t p = 0; p < N_PARTS; p++) load_scales(from + LANES * p, steps[p]);
        for (size_t t = 0; t < n; t++, codes += NVFP4_TILE * NVFP4_GROUP / 2, x += N_X) {
            prefetch(codes + AHEAD);
            prefetch(codes + AHEAD + 64);
            for (size_t p = 0; p < N_PARTS; p++) {
                Nvfp4Codes w = load_nvfp4(codes + 4 * LANES * p);
                for (size_t i = 0; i < N_X; i++)
                    sums[i][p] = fma(dot_nvfp4(w, x[i]), steps[p][t] * splat(x[i].scale), sums[i][p]);
            }
        }
    }
    for (size_t i = 0; i < N_X; i++)
        for (size_t p = 0; p < N_PARTS; p++)
            store(y + i * step + LANES * p, sums[i][p] * splat(factor));
}

template <size_t N_X>
void tiles_nvfp4(const Matrix &w, size_t first, size_t last, const QuantizedGroup *x, float *y,
                 size_t step) {
    constexpr size_t AT_ONCE = N_X == 1 ? TILE_PARTS : 1;
    const size_t n_groups = w.k / NVFP4_GROUP;
    const float factor = 0.5f * SCALE_FACTOR * w.scale;  // codes are doubled
    for (size_t row = first; row + NVFP4_TILE <= last; row += NVFP4_TILE, y += NVFP4_TILE)
        for (size_t p = 0; p < TILE_PARTS; p += AT_ONCE)
            tile_nvfp4<N_X, AT_ONCE>(w.values + row * (w.k / 2) + 4 * LANES * p,
                                     w.block_scale + row * n_groups + LANES * p, n_groups, x,
                                     factor, y + LANES * p, step);
}

// The tile of fewer than 16 rows at a matrix's end.
void rest_nvfp4(const Matrix &w, size_t first, const QuantizedGroup *x, size_t n_x, float *y,
                size_t step) {
    const size_t n_groups = w.k / NVFP4_GROUP, rows = w.n - first;
    const uint8_t *codes = w.values + first * (w.k / 2);
    const uint8_t *scales = w.block_scale + first * n_groups;
    for (size_t i = 0; i < n_x; i++)
        for (size_t r = 0; r < rows; r++) {
            float total = 0;
            for (size_t g = 0; g < n_groups; g++) {
                const QuantizedGroup &group = x[g * n_x + i];
                int32_t sum = 0;
                for (size_t c = 0; c < NVFP4_GROUP; c++) {
                    size_t byte = (2 * g + c / 8) * 4 * rows + 4 * r + c % 4;
                    sum += TWICE_E2M1[codes[byte] >> (c & 4) & 15] * group.codes[c];
                }
                total += static_cast<float>(sum) * (E4M3_VALUES.of[scales[g * rows + r]] * group.scale);
            }
            y[i * step + r] = total * 0.5f * w.scale;
        }
}

template <size_t N_X = PANEL_ROWS>
void product_nvfp4_of(const Matrix &w, size_t first, size_t last, const QuantizedGroup *x,
                      size_t n_x, float *y, size_t step) {
    if constexpr (N_X > 1)
        if (n_x < N_X) return product_nvfp4_of<N_X - 1>(w, first, last, x, n_x, y, step);
    tiles_nvfp4<N_X>(w, first, last, x, y, step);
}

void product_nvfp4(const Matrix &w, size_t first, size_t last, const QuantizedGroup *x, size_t n_x,
                   float *y, size_t step) {
    product_nvfp4_of(w, first, last, x, n_x, y, step);
    size_t rest = last / NVFP4_TILE * NVFP4_TILE;
    if (rest < last) rest_nvfp4(w, rest, x, n_x, y + (rest - first), step);
}

// Rows in pairs: first and last are even.
void gemv_int4(const Matrix &w, size_t first, size_t last, const QuantizedRow &x, float *y) {
    constexpr size_t STEP = 4 * LANES;
    const size_t n_blocks = w.k / INT4_BLOCK;
    const uint8_t *codes = w.values + first / 2 * w.k;
    const uint8_t *scales = w.block_scale + first * n_blocks * 4;
    for (size_t i = first; i < last; i += 2, scales += 2 * n_blocks * 4) {
        F32 even = zero(), odd = zero();
        for (size_t b = 0; b < n_blocks; b++) {
            F32 low = zero(), high = zero();
            for (size_t j = b * INT4_BLOCK; j < (b + 1) * INT4_BLOCK; j += STEP) {
                F32 sum_low, sum_high, scale = load(x.scales + j / 4);
                dot_int4(codes, x.codes + j, x.offsets + j / 4, sum_low, sum_high);
                low = fma(sum_low, scale, low);
                high = fma(sum_high, scale, high);
                codes += STEP;
            }
            prefetch(codes + AHEAD);
            prefetch(codes + AHEAD + 64);
            float step[2];
            std::memcpy(step, scales + 4 * b, sizeof *step);
            std::memcpy(step + 1, scales + 4 * (n_blocks + b), sizeof *step);
            even = fma(low, splat(step[0]), even);
            odd = fma(high, splat(step[1]), odd);
        }
        y[i] = sum(even);
        y[i + 1] = sum(odd);
    }
}
