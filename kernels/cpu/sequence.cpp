#include "sequence.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "pool.h"

// Values that one piece of an elementwise step takes: some microseconds.
constexpr size_t PIECE_VALUES = 8192;

void rms_norm(Rows x, const float *weight, float eps, MutableRows y) {
    size_t grain = std::max<size_t>(1, PIECE_VALUES / x.width);
    pool::ranges(x.n, grain, [&](size_t first, size_t last) {
        for (size_t i = first; i < last; i++)
            kernels().rms_norm(x.row(i), weight, x.width, eps, y.row(i));
    });
}

void gated_rms_norm(Rows x, Rows gate, const float *weight, size_t n_groups, float eps,
                    MutableRows y) {
    size_t width = x.width / n_groups;
    pool::ranges(x.n * n_groups, std::max<size_t>(1, PIECE_VALUES / width),
                 [&](size_t first, size_t last) {
                     for (size_t i = first; i < last; i++) {
                         size_t row = i / n_groups, at = i % n_groups * width;
                         kernels().gated_rms_norm(x.row(row) + at, gate.row(row) + at, weight + at,
                                                  width, eps, y.row(row) + at);
                     }
                 });
}

void causal_conv1d(Rows x, Rows past, Rows taps, const float *bias, MutableRows y,
                   MutableRows next) {
    constexpr size_t CHANNELS = 1024;
    size_t n_past = past.n;
    auto row = [&](size_t i) { return i < n_past ? past.row(i) : x.row(i - n_past); };
    pool::ranges(x.width, CHANNELS, [&](size_t first, size_t last) {
        const float *rows[MAX_TAPS];
        for (size_t i = 0; i < x.n; i++) {
            for (size_t t = 0; t <= n_past; t++) rows[t] = row(i + t) + first;
            kernels().convolve(rows, taps.data + first, taps.step, n_past + 1, bias + first,
                               last - first, y.row(i) + first);
        }
        for (size_t t = 0; t < n_past; t++)
            std::copy(row(x.n + t) + first, row(x.n + t) + last, next.row(t) + first);
    });
}

namespace {

float sigmoid(float x) {
    float small = std::exp(-std::fabs(x));
    return x >= 0 ? 1 / (1 + small) : small / (1 + small);
}

// Without the experts outside of the best groups. A group counts by the sum of its two best.
void limit_groups(const Routing &r, std::vector<float> &choice) {
    size_t width = choice.size() / r.n_groups;
    std::vector<float> strength(r.n_groups);
    std::vector<size_t> order(r.n_groups);
    for (size_t g = 0; g < r.n_groups; g++) {
        float best[2] = {-INFINITY, -INFINITY};
        for (size_t i = 0; i < width; i++) {
            float score = choice[g * width + i];
            if (score > best[0])
                best[1] = best[0], best[0] = score;
            else
                best[1] = std::max(best[1], score);
        }
        strength[g] = width > 1 ? best[0] + best[1] : best[0];
        order[g] = g;
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return strength[a] > strength[b]; });
    for (size_t i = r.n_chosen_groups; i < r.n_groups; i++)
        std::fill_n(choice.begin() + static_cast<long>(order[i] * width), width, -INFINITY);
}

}  // namespace

void route(const Routing &r, Rows logits, const float *bias, int32_t *ids, float *weights) {
    size_t n_experts = logits.width;
    std::vector<float> scores(n_experts), choice(n_experts);
    for (size_t i = 0; i < logits.n; i++, ids += r.n_slots, weights += r.n_slots) {
        for (size_t e = 0; e < n_experts; e++) {
            scores[e] = sigmoid(logits.row(i)[e]);
            choice[e] = scores[e] + bias[e];
        }
        if (r.n_groups > 1) limit_groups(r, choice);
        float total = 0;
        for (size_t slot = 0; slot < r.n_slots; slot++) {
            size_t best = 0;
            while (best + 1 < n_experts && std::isnan(choice[best])) best++;
            for (size_t e = best + 1; e < n_experts; e++)
                if (choice[e] > choice[best]) best = e;
            ids[slot] = static_cast<int32_t>(best);
            weights[slot] = scores[best];
            total += scores[best];
            choice[best] = std::numeric_limits<float>::quiet_NaN();
        }
        float factor = r.normalise ? 1 / (total + 1e-20f) : 1;
        for (size_t slot = 0; slot < r.n_slots; slot++)
            weights[slot] = weights[slot] * factor * r.factor;
    }
}
