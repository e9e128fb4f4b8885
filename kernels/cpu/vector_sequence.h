// What a token meets between the linears: norms, convolution, state, softmax.

// exp(x) within 2 units in the last place; below -87.3 about 1e-38. NaN stays NaN.
// Reduction by multiples of ln 2 and a polynomial, after the Cephes library's expf.
INLINE F32 exponential(F32 x) {
    x = min(splat(88.3762626f), max(splat(-87.3365448f), x));
    F32 n = nearest(x * splat(1.44269504f));
    F32 r = fma(n, splat(-0.693359375f), x);
    r = fma(n, splat(2.12194440e-4f), r);
    F32 p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r) + splat(1);
    return times_power_of_two(p, n);
}

INLINE F32 silu(F32 x) { return x / (splat(1) + exponential(splat(0) - x)); }

// work(p) for a register of values at each p; the last ones come in a padded copy, so that a value's result
// does not depend on where it stands.
template <size_t N_INPUTS, class Work>
INLINE void each(const float *const (&inputs)[N_INPUTS], size_t n, float *to, const Work &work) {
    size_t i = 0;
    F32 x[N_INPUTS];
    for (; i + LANES <= n; i += LANES) {
        for (size_t t = 0; t < N_INPUTS; t++) x[t] = load(inputs[t] + i);
        store(to + i, work(x));
    }
    if (i == n) return;
    for (size_t t = 0; t < N_INPUTS; t++) {
        float padded[LANES] = {};
        std::memcpy(padded, inputs[t] + i, (n - i) * sizeof(float));
        x[t] = load(padded);
    }
    float last[LANES];
    store(last, work(x));
    std::memcpy(to + i, last, (n - i) * sizeof(float));
}

INLINE float sum_of_squares(const float *x, size_t n) {
    F32 s[2] = {zero(), zero()};
    size_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES)
        for (size_t t = 0; t < 2; t++) s[t] = fma(load(x + i + LANES * t), load(x + i + LANES * t), s[t]);
    float total = sum(s[0] + s[1]);
    for (; i < n; i++) total += x[i] * x[i];
    return total;
}

INLINE void normalise(const float *x, const float *weight, size_t n, float eps, float *y) {
    float inverse = 1 / __builtin_sqrtf(sum_of_squares(x, n) / static_cast<float>(n) + eps);
    each({x, weight}, n, y, [=](const F32 *v) { return v[0] * splat(inverse) * v[1]; });
}

void rms_norm(const float *x, const float *weight, size_t n, float eps, float *y) {
    normalise(x, weight, n, eps, y);
}

void gated_rms_norm(const float *x, const float *gate, const float *weight, size_t n, float eps,
                    float *y) {
    each({x, gate}, n, y, [](const F32 *v) { return v[0] * silu(v[1]); });
    normalise(y, weight, n, eps, y);
}

void relu2(float *x, size_t n) {
    each({x}, n, x, [](const F32 *v) {
        F32 positive = max(zero(), v[0]);
        return positive * positive;
    });
}

void scale(float *x, float factor, size_t n) {
    each({x}, n, x, [=](const F32 *v) { return v[0] * splat(factor); });
}

void add_scaled(const float *x, float factor, float *y, size_t n) {
    each({x, y}, n, y, [=](const F32 *v) { return fma(v[0], splat(factor), v[1]); });
}

void convolve(const float *const *rows, const float *taps, size_t stride, size_t n_taps,
              const float *bias, size_t n, float *y) {
    each({bias}, n, y, [](const F32 *v) { return v[0]; });
    for (size_t t = 0; t < n_taps; t++)
        each({rows[t], taps + t * stride, y}, n, y,
               [](const F32 *v) { return fma(v[0], v[1], v[2]); });
    each({y}, n, y, [](const F32 *v) { return silu(v[0]); });
}

float state_step(const float *state, float decay, float x, const float *b, const float *c,
                 size_t n, float *next) {
    F32 s[2] = {zero(), zero()};
    size_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES)
        for (size_t t = 0; t < 2; t++) {
            size_t at = i + LANES * t;
            F32 value = fma(load(state + at), splat(decay), load(b + at) * splat(x));
            store(next + at, value);
            s[t] = fma(value, load(c + at), s[t]);
        }
    float total = sum(s[0] + s[1]);
    for (; i < n; i++) {
        next[i] = state[i] * decay + b[i] * x;
        total += next[i] * c[i];
    }
    return total;
}

// NaN is not the largest; it comes out of the sum.
INLINE float largest_of(const float *x, size_t n, float least) {
    F32 most = splat(least);
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) most = max(load(x + i), most);
    float lanes[LANES];
    store(lanes, most);
    for (float lane : lanes) least = lane > least ? lane : least;
    for (; i < n; i++) least = x[i] > least ? x[i] : least;
    return least;
}

INLINE float sum_of(const float *x, size_t n) {
    F32 s = zero();
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) s = s + load(x + i);
    float total = sum(s);
    for (; i < n; i++) total += x[i];
    return total;
}

float softmax(float *scores, size_t n, Softmax *running) {
    float largest = largest_of(scores, n, running->largest);
    each({scores}, n, scores,
           [=](const F32 *v) { return exponential(v[0] - splat(largest)); });
    float lanes[LANES] = {running->largest - largest};
    store(lanes, exponential(load(lanes)));
    running->largest = largest;
    running->sum = running->sum * lanes[0] + sum_of(scores, n);
    return lanes[0];
}
