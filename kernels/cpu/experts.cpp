// Routed experts: a token takes a few of many two-layer networks and sums what they answer.
#include <algorithm>
#include <vector>

#include "buffer.h"
#include "linear.h"
#include "pool.h"

namespace {

// The rows of one expert, in the order of their slots: [begin, end) of the sorted slots.
struct Group {
    size_t expert, begin, end;
};

// One row of x, all its experts at once.
void one_row(const Stack &up, const Stack &down, const float *x, const int32_t *ids,
             const float *weights, size_t n_slots, float *y, bool exact) {
    static thread_local Buffer buffer;
    float *hidden = buffer.of<float>(n_slots * up.n);
    bool codes = !exact && takes_quantized(up.format);
    Quantized input = codes ? quantized(up.format, x, up.k, 0) : Quantized{};
    size_t grain = rows_per_piece(up.matrix(0)), n_pieces = (up.n + grain - 1) / grain;
    pool::run(n_slots * n_pieces, [&](size_t piece) {
        size_t slot = piece / n_pieces, first = piece % n_pieces * grain;
        size_t last = std::min(up.n, first + grain);
        Matrix w = up.matrix(ids[slot]);
        float *to = hidden + slot * up.n;
        if (codes)
            kernels().gemv_quantized(w, first, last, input, to);
        else
            kernels().gemv(w, first, last, x, to);
        kernels().relu2(to + first, last - first);
    });
    codes = !exact && takes_quantized(down.format);
    Quantized inputs[MAX_QUANTIZED];
    if (codes)
        for (size_t slot = 0; slot < n_slots; slot++)
            inputs[slot] = quantized(down.format, hidden + slot * up.n, down.k, slot);
    grain = std::max<size_t>(2, rows_per_piece(down.matrix(0)) / n_slots / 2 * 2);
    pool::ranges(down.n, grain, [&](size_t first, size_t last) {
        static thread_local Buffer piece;
        float *part = piece.of<float>(down.n);
        std::fill(y + first, y + last, 0.0f);
        for (size_t slot = 0; slot < n_slots; slot++) {
            Matrix w = down.matrix(ids[slot]);
            if (codes)
                kernels().gemv_quantized(w, first, last, inputs[slot], part);
            else
                kernels().gemv(w, first, last, hidden + slot * up.n, part);
            kernels().add_scaled(part + first, weights[slot], y + first, last - first);
        }
    });
}

// Many rows: each expert once, with all the rows that chose it.
void many_rows(const Stack &up, const Stack &down, Rows x, const int32_t *ids,
               const float *weights, size_t n_slots, MutableRows y) {
    static thread_local Buffer gathered_buffer, hidden_buffer;
    size_t n = x.n * n_slots;
    std::vector<size_t> begins(up.n_matrices + 1), slots(n);
    for (size_t i = 0; i < n; i++) begins[ids[i] + 1]++;
    for (size_t e = 0; e < up.n_matrices; e++) begins[e + 1] += begins[e];
    std::vector<Group> groups;
    for (size_t e = 0; e < up.n_matrices; e++)
        if (begins[e] < begins[e + 1]) groups.push_back({e, begins[e], begins[e + 1]});
    std::vector<size_t> next(begins.begin(), begins.end() - 1);
    for (size_t i = 0; i < n; i++) slots[next[ids[i]]++] = i;

    Blocked gathered{gathered_buffer.of<float>(n * Blocked::padded(up.k)), n, up.k};
    Blocked hidden{hidden_buffer.of<float>(n * Blocked::padded(up.n)), n, up.n};
    pool::ranges(n, 16, [&](size_t first, size_t last) {
        for (size_t i = first; i < last; i++) gathered.set_row(i, x.row(slots[i] / n_slots));
    });
    static_assert(BLOCK_COLUMNS % PRODUCT_ROWS == 0, "a piece of hidden lies in one block");
    size_t n_pieces = (up.n + PRODUCT_ROWS - 1) / PRODUCT_ROWS;
    pool::run(groups.size() * n_pieces, [&](size_t piece) {
        const Group &group = groups[piece / n_pieces];
        size_t first = piece % n_pieces * PRODUCT_ROWS, rows = group.end - group.begin;
        size_t last = std::min(up.n, first + PRODUCT_ROWS);
        MutableRows to{hidden.at(group.begin, first), rows, last - first,
                       hidden.step(first / BLOCK_COLUMNS * BLOCK_COLUMNS)};
        product(up.matrix(group.expert), first, last, gathered, group.begin, group.end, to);
        for (size_t i = 0; i < rows; i++) kernels().relu2(to.row(i), to.width);
    });
    // A piece has its columns of y for itself, and adds the experts in their order.
    pool::ranges(down.n, PRODUCT_ROWS, [&](size_t first, size_t last) {
        static thread_local Buffer buffer;
        for (size_t i = 0; i < x.n; i++) std::fill(y.row(i) + first, y.row(i) + last, 0.0f);
        for (const Group &group : groups) {
            size_t rows = group.end - group.begin, width = last - first;
            MutableRows part{buffer.of<float>(rows * width), rows, width, width};
            product(down.matrix(group.expert), first, last, hidden, group.begin, group.end, part);
            for (size_t i = 0; i < rows; i++) {
                size_t slot = slots[group.begin + i];
                kernels().add_scaled(part.row(i), weights[slot],
                                     y.row(slot / n_slots) + first, width);
            }
        }
    });
}

}  // namespace

void experts(const Stack &up, const Stack &down, Rows x, const int32_t *ids, const float *weights,
             size_t n_slots, MutableRows y, bool exact) {
    if (x.n == 1)
        one_row(up, down, x.data, ids, weights, n_slots, y.data, exact);
    else
        many_rows(up, down, x, ids, weights, n_slots, y);
}
