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

// One row of activations as weights of a format take it.
struct Input {
    const float *x;
    QuantizedGroup *groups;  // NVFP4, unless exact
    QuantizedRow row;        // INT4, unless exact
};

Input input_of(const Matrix &w, const float *x, bool exact, QuantizedGroup *groups, size_t slot) {
    if (exact || (w.format != Format::NVFP4 && w.format != Format::INT4)) return {x, nullptr, {}};
    if (w.format == Format::INT4) return {x, nullptr, quantized_row(x, w.k, slot)};
    kernels().quantize_nvfp4(x, w.k, groups, 1);
    return {x, groups, {}};
}

// y[first .. last] of W x.
void multiply(const Matrix &w, const Input &input, size_t first, size_t last, float *y) {
    if (input.groups)
        kernels().product_nvfp4(w, first, last, input.groups, 1, y + first, 0);
    else if (input.row.codes)
        kernels().gemv_int4(w, first, last, input.row, y);
    else
        kernels().gemv(w, first, last, input.x, y);
}

// One row of x, all its experts at once.
void one_row(const Stack &up, const Stack &down, const float *x, const int32_t *ids,
             const float *weights, size_t n_slots, float *y, bool exact) {
    static thread_local Buffer hidden_buffer, up_buffer, down_buffer;
    float *hidden = hidden_buffer.of<float>(n_slots * up.n);
    QuantizedGroup *groups = up_buffer.of<QuantizedGroup>(up.k / NVFP4_GROUP);
    const Input input = input_of(up.matrix(0), x, exact, groups, 0);
    size_t grain = rows_per_piece(up.matrix(0)), n_pieces = (up.n + grain - 1) / grain;
    pool::run(n_slots * n_pieces, [&](size_t piece) {
        size_t slot = piece / n_pieces, first = piece % n_pieces * grain;
        size_t last = std::min(up.n, first + grain);
        float *to = hidden + slot * up.n;
        multiply(up.matrix(ids[slot]), input, first, last, to);
        kernels().relu2(to + first, last - first);
    });
    size_t n_groups = down.k / NVFP4_GROUP;
    groups = down_buffer.of<QuantizedGroup>(n_slots * n_groups);
    Input inputs[MAX_SLOTS];
    for (size_t slot = 0; slot < n_slots; slot++)
        inputs[slot] = input_of(down.matrix(0), hidden + slot * up.n, exact,
                                groups + slot * n_groups, slot);
    pool::ranges(down.n, rows_per_piece(down.matrix(0), n_slots), [&](size_t first, size_t last) {
        static thread_local Buffer piece;
        float *part = piece.of<float>(down.n);
        std::fill(y + first, y + last, 0.0f);
        for (size_t slot = 0; slot < n_slots; slot++) {
            multiply(down.matrix(ids[slot]), inputs[slot], first, last, part);
            kernels().add_scaled(part + first, weights[slot], y + first, last - first);
        }
    });
}

// Rows of activations sorted by expert, in floats or in 8 bits, as their matrices take them.
struct Sorted {
    Blocked floats;
    QuantizedGroup *groups;  // null: floats
    size_t n_groups;

    Sorted(const Stack &stack, size_t n, bool exact, Buffer &buffer) : n_groups(stack.k / NVFP4_GROUP) {
        bool quantized = !exact && stack.format == Format::NVFP4;
        groups = quantized ? buffer.of<QuantizedGroup>(n * n_groups) : nullptr;
        floats = {quantized ? nullptr : buffer.of<float>(n * Blocked::padded(stack.k)), n, stack.k};
    }
    Panels panels(const Group &group) const {
        return {groups + group.begin * n_groups, group.end - group.begin, n_groups};
    }
    // row(i): values of the i-th.
    template <class Row>
    void fill(const std::vector<Group> &of, const Row &row) const {
        pool::run(of.size(), [&](size_t at) {
            for (size_t i = of[at].begin; i < of[at].end; i++)
                if (groups)
                    panels(of[at]).set_row(i - of[at].begin, row(i));
                else
                    floats.set_row(i, row(i));
        });
    }
    // Columns first .. last of what the matrix makes of a group's rows.
    void multiply(const Matrix &w, const Group &group, size_t first, size_t last,
                  MutableRows y) const {
        if (groups)
            panels(group).product(w, first, last, y);
        else
            product(w, first, last, floats, group.begin, group.end, y);
    }
};

// The slots in the order of their experts.
std::vector<Group> sort_by_expert(const int32_t *ids, size_t n_experts, std::vector<size_t> &slots) {
    std::vector<size_t> begins(n_experts + 1);
    for (size_t i = 0; i < slots.size(); i++) begins[ids[i] + 1]++;
    for (size_t e = 0; e < n_experts; e++) begins[e + 1] += begins[e];
    std::vector<Group> groups;
    for (size_t e = 0; e < n_experts; e++)
        if (begins[e] < begins[e + 1]) groups.push_back({e, begins[e], begins[e + 1]});
    for (size_t i = 0; i < slots.size(); i++) slots[begins[ids[i]]++] = i;
    return groups;
}

// Many rows: each expert once, with all the rows that chose it.
void many_rows(const Stack &up, const Stack &down, Rows x, const int32_t *ids,
               const float *weights, size_t n_slots, MutableRows y, bool exact) {
    static thread_local Buffer gathered_buffer, hidden_buffer, inner_buffer;
    static_assert(PRODUCT_ROWS % NVFP4_TILE == 0, "a piece is whole tiles");
    std::vector<size_t> slots(x.n * n_slots);
    const std::vector<Group> groups = sort_by_expert(ids, up.n_matrices, slots);
    const Sorted gathered(up, slots.size(), exact, gathered_buffer);
    gathered.fill(groups, [&](size_t i) { return x.row(slots[i] / n_slots); });
    const MutableRows hidden{hidden_buffer.of<float>(slots.size() * up.n), slots.size(), up.n, up.n};
    size_t n_pieces = (up.n + PRODUCT_ROWS - 1) / PRODUCT_ROWS;
    pool::run(groups.size() * n_pieces, [&](size_t piece) {
        const Group &group = groups[piece / n_pieces];
        size_t first = piece % n_pieces * PRODUCT_ROWS, rows = group.end - group.begin;
        size_t last = std::min(up.n, first + PRODUCT_ROWS);
        MutableRows to{hidden.row(group.begin) + first, rows, last - first, hidden.step};
        gathered.multiply(up.matrix(group.expert), group, first, last, to);
        for (size_t i = 0; i < rows; i++) kernels().relu2(to.row(i), to.width);
    });
    const Sorted inner(down, slots.size(), exact, inner_buffer);
    inner.fill(groups, [&](size_t i) { return hidden.row(i); });
    // A piece has its columns of y for itself, and adds the experts in their order.
    pool::ranges(down.n, PRODUCT_ROWS, [&](size_t first, size_t last) {
        static thread_local Buffer buffer;
        for (size_t i = 0; i < x.n; i++) std::fill(y.row(i) + first, y.row(i) + last, 0.0f);
        for (const Group &group : groups) {
            size_t rows = group.end - group.begin, width = last - first;
            MutableRows part{buffer.of<float>(rows * width), rows, width, width};
            inner.multiply(down.matrix(group.expert), group, first, last, part);
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
        many_rows(up, down, x, ids, weights, n_slots, y, exact);
}
