// Attention in tiles of keys with a running softmax, so that memory does not grow with the context.
// A piece is some rows of queries of one key/value head over a span of keys; a long past is cut
// into spans, whose answers are joined at the end.
#include <algorithm>
#include <cmath>

#include "buffer.h"
#include "pool.h"
#include "sequence.h"

namespace {

constexpr size_t TILE = 64;       // keys at a time
constexpr size_t SPAN = 1024;     // keys of a piece, unless the queries alone make pieces enough
constexpr size_t ENOUGH_PIECES = 32;  // no matter how many threads: sums are the same everywhere
constexpr size_t MAX_ROWS = 64;   // queries of a piece

struct Job {
    Rows q;
    const float *keys, *values;
    size_t n_past, n_kv_heads, head_dim, per_kv_head;
    size_t tokens;   // of q in a piece
    size_t n_spans;
    float *outputs;  // [pieces, tokens * per_kv_head, head_dim]
    Softmax *sums;   // [pieces, tokens * per_kv_head]

    size_t rows() const { return tokens * per_kv_head; }
};

// Rows of keys or values, which lie apart, on their way into the cache.
void fetch(const float *rows, size_t n, size_t step, size_t dim) {
    for (size_t row = 0; row < n; row++)
        for (size_t i = 0; i < dim; i += 16) __builtin_prefetch(rows + row * step + i, 0, 2);
}

void attend(const Job &job, size_t piece, size_t kv_head, size_t first_token, size_t n_tokens,
            size_t begin, size_t end) {
    static thread_local Buffer query_buffer, score_buffer;
    const size_t dim = job.head_dim, heads = job.per_kv_head, n_rows = n_tokens * heads;
    const size_t step = job.n_kv_heads * dim;
    float *queries = query_buffer.of<float>(n_rows * dim);
    float *scores = score_buffer.of<float>(n_rows * TILE);
    float *out = job.outputs + piece * job.rows() * dim;
    Softmax *sums = job.sums + piece * job.rows();
    const float factor = 1 / std::sqrt(static_cast<float>(dim));
    for (size_t r = 0; r < n_rows; r++) {
        size_t head = kv_head * heads + r % heads;
        std::copy_n(job.q.row(first_token + r / heads) + head * dim, dim, queries + r * dim);
        kernels().scale(queries + r * dim, factor, dim);
        sums[r] = {-INFINITY, 0};
    }
    std::fill_n(out, n_rows * dim, 0.0f);
    for (size_t at = begin; at < end; at += TILE) {
        size_t n = std::min(TILE, end - at);
        const float *keys = job.keys + at * step + kv_head * dim;
        const float *values = job.values + at * step + kv_head * dim;
        fetch(values, n, step, dim);
        kernels().gemm(queries, dim, n_rows, keys, step, n, dim, scores, TILE, false);
        fetch(keys + n * step, std::min(TILE, end - at - n), step, dim);
        for (size_t r = 0; r < n_rows; r++) {
            size_t visible = job.n_past + first_token + r / heads + 1;
            size_t n_seen = std::min(n, visible > at ? visible - at : 0);
            std::fill(scores + r * TILE + n_seen, scores + r * TILE + n, 0.0f);
            if (n_seen == 0) continue;
            float kept = kernels().softmax(scores + r * TILE, n_seen, &sums[r]);
            if (kept != 1) kernels().scale(out + r * dim, kept, dim);
        }
        kernels().gemm_outer(scores, TILE, 1, n_rows, values, step, dim, n, out, dim);
    }
}

// The spans' answers for one row of queries, each by its share of the sum.
void join(const Job &job, size_t first_piece, size_t row, float *y) {
    float largest = -INFINITY, total = 0;
    for (size_t i = 0; i < job.n_spans; i++)
        largest = std::max(largest, job.sums[(first_piece + i) * job.rows() + row].largest);
    std::fill_n(y, job.head_dim, 0.0f);
    for (size_t i = 0; i < job.n_spans; i++) {
        size_t at = (first_piece + i) * job.rows() + row;
        float share = std::exp(job.sums[at].largest - largest);
        total += share * job.sums[at].sum;
        kernels().add_scaled(job.outputs + at * job.head_dim, share, y, job.head_dim);
    }
    kernels().scale(y, 1 / total, job.head_dim);
}

}  // namespace

void attention(Rows q, const float *keys, const float *values, size_t n_past, size_t n_kv_heads,
               size_t head_dim, MutableRows y) {
    static thread_local Buffer outputs, sums;
    size_t per_kv_head = q.width / head_dim / n_kv_heads;
    size_t tokens = std::min(q.n, std::max<size_t>(1, MAX_ROWS / per_kv_head));
    size_t n_blocks = (q.n + tokens - 1) / tokens, n_keys = n_past + q.n;
    size_t span = n_blocks * n_kv_heads < ENOUGH_PIECES ? SPAN : n_keys;
    size_t n_spans = (n_keys + span - 1) / span;
    size_t n_pieces = n_blocks * n_kv_heads * n_spans, rows = tokens * per_kv_head;
    Job job{q,      keys,    values, n_past, n_kv_heads, head_dim, per_kv_head,
            tokens, n_spans, outputs.of<float>(n_pieces * rows * head_dim),
            sums.of<Softmax>(n_pieces * rows)};
    pool::run(n_pieces, [&](size_t piece) {
        // The last blocks see the most keys: they start first.
        size_t block = n_blocks - 1 - piece / (n_kv_heads * n_spans);
        size_t kv_head = piece / n_spans % n_kv_heads, begin = piece % n_spans * span;
        size_t first = block * tokens, n_tokens = std::min(tokens, job.q.n - first);
        size_t end = std::min(begin + span, n_past + first + n_tokens);
        attend(job, piece, kv_head, first, n_tokens, begin, end);
    });
    pool::run(n_blocks * n_kv_heads, [&](size_t i) {
        size_t block = n_blocks - 1 - i / n_kv_heads, kv_head = i % n_kv_heads;
        size_t first = block * tokens, n_tokens = std::min(tokens, job.q.n - first);
        for (size_t r = 0; r < n_tokens * per_kv_head; r++)
            join(job, i * n_spans, r,
                 y.row(first + r / per_kv_head) +
                     (kv_head * per_kv_head + r % per_kv_head) * head_dim);
    });
}
