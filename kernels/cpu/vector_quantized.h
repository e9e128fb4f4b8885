// Matrix-vector products in integers: 4-bit weight codes with 8-bit activation codes. A weight's
// scale, an activation's scale and the integer sum meet in float32, once for each lane of a block.

// Below this a group of activations counts as zero: 127 / amax must stay finite.
constexpr float SMALLEST_AMAX = 0x1p-100f;

// 16 activations -> codes; returns their scale. A NaN or an infinity makes the scale NaN.
INLINE float quantize16(const float *x, int8_t *codes) {
    F32x8 a = load(x), b = load(x + 8);
    float lanes[8], amax = 0;
    store(lanes, max(magnitude(a), magnitude(b)));
    for (float lane : lanes) amax = lane > amax ? lane : amax;
    float inverse = amax < SMALLEST_AMAX ? 0 : 127 / amax;
    store_codes(codes, a * splat(inverse), b * splat(inverse));
    return amax / 127 + sum((a + b) * splat(0));
}

// k is padded with zeros to a multiple of 128.
void quantize(Format format, const float *x, size_t k, const Quantized &to) {
    const bool halves = format == Format::NVFP4;
    const int32_t offset = halves ? NVFP4_OFFSET : INT4_OFFSET;
    const size_t lane_values = halves ? 8 : 4;
    size_t padded = (k + 127) / 128 * 128;
    float *scales = to.scales;
    int32_t *offsets = to.offsets;
    for (size_t j = 0; j < padded; j += 16) {
        float values[16] = {};
        const float *from = x + j;
        if (j + 16 > k) {
            if (j < k) std::memcpy(values, x + j, (k - j) * sizeof *x);
            from = values;
        }
        int8_t codes[16];
        float scale = quantize16(from, codes);
        for (size_t lane = 0; lane < 16; lane += lane_values) {
            int32_t total = 0;
            for (size_t i = 0; i < lane_values; i++) total += codes[lane + i];
            *scales++ = scale;
            *offsets++ = offset * total;
        }
        if (halves) {
            int8_t *even = to.codes + j / NVFP4_BLOCK * NVFP4_BLOCK + j % NVFP4_BLOCK / 2;
            for (size_t i = 0; i < 8; i++) {
                even[i] = codes[2 * i];
                even[i + NVFP4_BLOCK / 2] = codes[2 * i + 1];
            }
        } else {
            std::memcpy(to.codes + j, codes, sizeof codes);
        }
    }
}

// 64 columns of a row; `scales` of their 4 groups, one for two lanes each.
INLINE F32x8 nvfp4_block(const uint8_t *codes, F32x8 scales, const Quantized &x, size_t j, F32x8 s) {
    F32x8 products = dot_nvfp4(codes, x.codes + j, x.offsets + j / 8);
    return fma(products, scales * load(x.scales + j / 8), s);
}

void gemv_nvfp4(const Matrix &w, size_t first, size_t last, const Quantized &x, float *y) {
    constexpr size_t BLOCKS = 4, COLUMNS = BLOCKS * NVFP4_BLOCK;
    const size_t whole = w.k / COLUMNS * COLUMNS, rest = w.k - whole;
    const uint8_t *codes = w.values + first * (w.k / 2);
    const uint8_t *scales = w.block_scale + first * (w.k / NVFP4_GROUP);
    const float factor = 0x1p7f * w.scale;  // scales come as 2^-8, codes doubled
    for (size_t i = first; i < last; i++) {
        F32x8 steps[BLOCKS], s[2] = {zero(), zero()};
        for (size_t j = 0; j < whole; j += COLUMNS, codes += COLUMNS / 2) {
            prefetch(codes + AHEAD);
            prefetch(codes + AHEAD + 64);
            load_group_scales(scales, steps);
            scales += COLUMNS / NVFP4_GROUP;
            for (size_t b = 0; b < BLOCKS; b++)
                s[b % 2] = nvfp4_block(codes + 32 * b, steps[b], x, j + NVFP4_BLOCK * b, s[b % 2]);
        }
        if (rest) {
            uint8_t last_scales[COLUMNS / NVFP4_GROUP] = {}, last_codes[NVFP4_BLOCK / 2] = {};
            std::memcpy(last_scales, scales, rest / NVFP4_GROUP);
            load_group_scales(last_scales, steps);
            size_t b = 0, j = whole;
            for (; (b + 1) * NVFP4_BLOCK <= rest; b++, j += NVFP4_BLOCK)
                s[0] = nvfp4_block(codes + 32 * b, steps[b], x, j, s[0]);
            if (rest % NVFP4_BLOCK) {
                std::memcpy(last_codes, codes + 32 * b, rest % NVFP4_BLOCK / 2);
                s[1] = nvfp4_block(last_codes, steps[b], x, j, s[1]);
            }
            codes += rest / 2;
            scales += rest / NVFP4_GROUP;
        }
        y[i] = sum(s[0] + s[1]) * factor;
    }
}

// Rows in pairs: first and last are even.
void gemv_int4(const Matrix &w, size_t first, size_t last, const Quantized &x, float *y) {
    const size_t n_blocks = w.k / INT4_BLOCK;
    const uint8_t *codes = w.values + first / 2 * w.k;
    const uint8_t *scales = w.block_scale + first * n_blocks * 4;
    for (size_t i = first; i < last; i += 2, scales += 2 * n_blocks * 4) {
        F32x8 even = zero(), odd = zero();
        for (size_t b = 0; b < n_blocks; b++) {
            F32x8 low = zero(), high = zero();
            for (size_t j = b * INT4_BLOCK; j < (b + 1) * INT4_BLOCK; j += INT4_STEP) {
                F32x8 sum_low, sum_high, scale = load(x.scales + j / 4);
                dot_int4(codes, x.codes + j, x.offsets + j / 4, sum_low, sum_high);
                low = fma(sum_low, scale, low);
                high = fma(sum_high, scale, high);
                codes += INT4_STEP;
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

void gemv_quantized(const Matrix &w, size_t first, size_t last, const Quantized &x, float *y) {
    if (w.format == Format::NVFP4)
        gemv_nvfp4(w, first, last, x, y);
    else
        gemv_int4(w, first, last, x, y);
}
