// The state-space scan of Mamba2. One row is one pass over the state. Many rows go in chunks: what
// their own earlier rows add is a product of matrices, what the state adds another, and the state
// moves once a chunk. Source: Dao and Gu 2024, "Transformers are SSMs", section 6.
#include <algorithm>
#include <cmath>

#include "buffer.h"
#include "pool.h"
#include "sequence.h"

namespace {

constexpr size_t CHUNK = 64;

double softplus(float x) { return std::max(0.0f, x) + std::log1p(std::exp(-std::fabs(x))); }

void one_row(const StateSpace &s, Rows x, Rows b, Rows c, Rows dt, const float *state, MutableRows y,
             float *next) {
    pool::run(s.n_heads, [&](size_t head) {
        size_t group = head / (s.n_heads / s.n_groups) * s.state_size;
        float step = static_cast<float>(softplus(dt.data[head] + s.dt_bias[head]));
        float decay = std::exp(-step * std::exp(s.a_log[head]));
        for (size_t p = head * s.head_dim; p < (head + 1) * s.head_dim; p++) {
            float out = kernels().state_step(state + p * s.state_size, decay, step * x.data[p],
                                             b.data + group, c.data + group, s.state_size,
                                             next + p * s.state_size);
            y.data[p] = out + s.d[head] * x.data[p];
        }
    });
}

// What each row of a chunk keeps of earlier ones, for one head.
struct Decays {
    float step[CHUNK];
    double total[CHUNK];  // log decay since the chunk's start; float32 would lose the small ones

    Decays(const StateSpace &s, Rows dt, size_t first, size_t n, size_t head) {
        double rate = -std::exp(s.a_log[head]), sum = 0;
        for (size_t t = 0; t < n; t++) {
            step[t] = static_cast<float>(softplus(dt.row(first + t)[head] + s.dt_bias[head]));
            total[t] = sum += step[t] * rate;
        }
    }
    float since(size_t to, size_t from) const {
        return std::exp(static_cast<float>(total[to] - total[from]));
    }
};

// One head over rows first .. first + n. scores [n, CHUNK]: c . b of its group.
void one_chunk(const StateSpace &s, Rows x, Rows b, Rows c, Rows dt, const float *scores, size_t first,
               size_t n, size_t head, float *state, MutableRows y) {
    static thread_local Buffer seen_buffer, pushed_buffer, mixed_buffer;
    const size_t at = head * s.head_dim;
    const size_t group = head / (s.n_heads / s.n_groups) * s.state_size;
    float *seen = seen_buffer.of<float>(n * s.state_size);
    float *pushed = pushed_buffer.of<float>(n * s.head_dim), *mixed = mixed_buffer.of<float>(n * n);
    Decays decays(s, dt, first, n, head);
    for (size_t t = 0; t < n; t++) {
        const float *row = x.row(first + t) + at;
        float *out = y.row(first + t) + at;
        for (size_t p = 0; p < s.head_dim; p++) out[p] = s.d[head] * row[p];
        for (size_t from = 0; from < n; from++)
            mixed[t * n + from] = from > t ? 0
                                           : scores[t * CHUNK + from] * decays.since(t, from) *
                                                 decays.step[from];
        std::copy_n(c.row(first + t) + group, s.state_size, seen + t * s.state_size);
        kernels().scale(seen + t * s.state_size, std::exp(static_cast<float>(decays.total[t])),
                        s.state_size);
        float left = decays.step[t] * decays.since(n - 1, t);
        for (size_t p = 0; p < s.head_dim; p++) pushed[t * s.head_dim + p] = left * row[p];
    }
    float *to = y.row(first) + at;
    kernels().gemm_outer(mixed, n, 1, n, x.row(first) + at, x.step, s.head_dim, n, to, y.step);
    kernels().gemm(seen, s.state_size, n, state, s.state_size, s.head_dim, s.state_size, to, y.step,
                   true);
    kernels().scale(state, std::exp(static_cast<float>(decays.total[n - 1])),
                    s.head_dim * s.state_size);
    kernels().gemm_outer(pushed, 1, s.head_dim, s.head_dim, b.row(first) + group, b.step,
                         s.state_size, n, state, s.state_size);
}

}  // namespace

void state_space(const StateSpace &s, Rows x, Rows b, Rows c, Rows dt, const float *state, MutableRows y,
                 float *next) {
    if (x.n == 1) return one_row(s, x, b, c, dt, state, y, next);
    static thread_local Buffer buffer;
    size_t n_chunks = (x.n + CHUNK - 1) / CHUNK;
    float *scores = buffer.of<float>(n_chunks * s.n_groups * CHUNK * CHUNK);
    auto rows_of = [&](size_t chunk) { return std::min(CHUNK, x.n - chunk * CHUNK); };
    pool::run(n_chunks * s.n_groups, [&](size_t piece) {
        size_t chunk = piece / s.n_groups, group = piece % s.n_groups * s.state_size;
        size_t n = rows_of(chunk), first = chunk * CHUNK;
        kernels().gemm(c.row(first) + group, c.step, n, b.row(first) + group, b.step, n,
                       s.state_size, scores + piece * CHUNK * CHUNK, CHUNK, false);
    });
    pool::run(s.n_heads, [&](size_t head) {
        size_t n_values = s.head_dim * s.state_size;
        float *own = next + head * n_values;
        std::copy_n(state + head * n_values, n_values, own);
        for (size_t chunk = 0; chunk < n_chunks; chunk++) {
            size_t piece = chunk * s.n_groups + head / (s.n_heads / s.n_groups);
            one_chunk(s, x, b, c, dt, scores + piece * CHUNK * CHUNK, chunk * CHUNK,
                      rows_of(chunk), head, own, y);
        }
    });
}
