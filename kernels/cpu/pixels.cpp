// A frame to patches in one pass: rows are resized along the width eight at a time, kept while the
// rows below need them, and each output row goes straight to its place in the patches.
#include <cstring>

#include "kernels.h"

namespace {

constexpr size_t N_ROWS = 8;    // input rows at a time, each in a SIMD lane of its own
constexpr size_t CHANNELS = 3;  // red, green, blue, interleaved
constexpr size_t BLOCK = 16;    // pixels of a row that are resized along the height at a time
constexpr size_t CHUNK = 256;   // bytes of each row that are interleaved at a time

// What one instruction computes: 8 floats with AVX2, 4 with NEON and SSE2.
template <size_t N>
struct Simd {
    typedef float Floats __attribute__((vector_size(N * sizeof(float))));
};

typedef float Four __attribute__((vector_size(16)));
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t Order __attribute__((vector_size(16)));
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Order{__VA_ARGS__})
#endif

// A resize of one axis: out[i] = sum over t of weights[i, t] * in[first[i] + t].
struct Axis {
    const int32_t *first;
    const float *weights;  // [n_out, n_taps]
    size_t n_in, n_out, n_taps;
    bool same;  // out = in
};

struct Frame {
    const uint8_t *pixels;
    ptrdiff_t row_bytes;
    Axis columns, rows;
    const float *gain, *offset;  // of each channel: patch = resized * gain + offset
};

struct Patches {
    float *values;
    ptrdiff_t stride;  // from one patch to the next
    size_t side;       // of a patch, pixels
};

size_t rounded_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

INLINE void zip(const uint8_t *a, const uint8_t *b, size_t n, uint8_t *__restrict out) {
    for (size_t i = 0; i < n; i++) {
        out[2 * i] = a[i];
        out[2 * i + 1] = b[i];
    }
}

// Eight rows of n bytes -> lanes[i] = byte i of each of them.
INLINE void to_lanes(const uint8_t *const rows[N_ROWS], size_t n, float *__restrict lanes) {
    uint8_t twos[4][2 * CHUNK], fours[2][4 * CHUNK], eights[8 * CHUNK];
    for (size_t start = 0; start < n; start += CHUNK) {
        const size_t m = std::min(CHUNK, n - start);
        for (size_t i = 0; i < 4; i++) zip(rows[i] + start, rows[i + 4] + start, m, twos[i]);
        for (size_t i = 0; i < 2; i++) zip(twos[i], twos[i + 2], 2 * m, fours[i]);
        zip(fours[0], fours[1], 4 * m, eights);
        for (size_t i = 0; i < N_ROWS * m; i++) lanes[N_ROWS * start + i] = eights[i];
    }
}

template <class Floats>
INLINE Floats load(const float *from) {
    Floats to;
    std::memcpy(&to, from, sizeof to);
    return to;
}

// A block of 4 x 4: in[i][j] -> rows[j][at + i].
INLINE void transpose(const float *in, float *const *rows, size_t at) {
    const Four a = load<Four>(in), b = load<Four>(in + N_ROWS);
    const Four c = load<Four>(in + 2 * N_ROWS), d = load<Four>(in + 3 * N_ROWS);
    const Four pairs[] = {SHUFFLE(a, b, 0, 4, 1, 5), SHUFFLE(c, d, 0, 4, 1, 5),
                          SHUFFLE(a, b, 2, 6, 3, 7), SHUFFLE(c, d, 2, 6, 3, 7)};
    const Four out[] = {SHUFFLE(pairs[0], pairs[1], 0, 1, 4, 5),
                        SHUFFLE(pairs[0], pairs[1], 2, 3, 6, 7),
                        SHUFFLE(pairs[2], pairs[3], 0, 1, 4, 5),
                        SHUFFLE(pairs[2], pairs[3], 2, 3, 6, 7)};
    for (size_t j = 0; j < 4; j++) std::memcpy(rows[j] + at, &out[j], sizeof out[j]);
}

// Eight rows in lanes, resized along the width -> rows of CHANNELS planes, `plane` floats each.
template <size_t N>
INLINE void resize_width(const float *lanes, Axis axis, size_t plane, float *const rows[N_ROWS]) {
    using Floats = typename Simd<N>::Floats;
    for (size_t x = 0; x < axis.n_out; x += N_ROWS) {
        const size_t n = std::min(N_ROWS, axis.n_out - x);
        float block[CHANNELS][N_ROWS][N_ROWS];
        for (size_t i = 0; i < n; i++) {
            const float *in = lanes + axis.first[x + i] * CHANNELS * N_ROWS;
            const float *weights = axis.weights + (x + i) * axis.n_taps;
            Floats sums[CHANNELS * N_ROWS / N] = {};
            for (size_t t = 0; t < axis.n_taps; t++)
                for (Floats &sum : sums) {
                    sum += load<Floats>(in) * weights[t];
                    in += N;
                }
            for (size_t c = 0; c < CHANNELS; c++)
                std::memcpy(block[c][i], &sums[c * N_ROWS / N], sizeof block[c][i]);
        }
        for (size_t c = 0; c < CHANNELS; c++)  // planes have room for a whole last block
            for (size_t row = 0; row < N_ROWS; row += 4)
                for (size_t i = 0; i < N_ROWS; i += 4)
                    transpose(block[c][i] + row, rows + row, c * plane + x + i);
    }
}

// A row of n pixels, its width kept -> CHANNELS planes.
INLINE void split(const uint8_t *pixels, size_t n, size_t plane, float *__restrict row) {
    for (size_t x = 0; x < n; x++)
        for (size_t c = 0; c < CHANNELS; c++) row[c * plane + x] = pixels[CHANNELS * x + c];
}

// One row of one channel of a patch, from the rows that it depends on.
template <size_t N>
INLINE void resize_height(const float *const *rows, size_t at, const float *weights, size_t n_taps,
                          float gain, float offset, size_t n, float *out) {
    using Floats = typename Simd<N>::Floats;
    for (size_t x = 0; x < n; x += BLOCK) {
        Floats sums[BLOCK / N] = {};
        for (size_t t = 0; t < n_taps; t++)
            for (size_t i = 0; i < BLOCK / N; i++)
                sums[i] += load<Floats>(rows[t] + at + x + i * N) * weights[t];
        for (Floats &sum : sums) sum = sum * gain + offset;
        if (n - x >= BLOCK)
            std::memcpy(out + x, sums, sizeof sums);
        else
            std::memcpy(out + x, sums, (n - x) * sizeof(float));
    }
}

// Patch rows first..last - 1.
template <size_t N>
INLINE void patch_rows_body(const Frame &frame, size_t first, size_t last, Patches patches) {
    const Axis &columns = frame.columns, &rows = frame.rows;
    const size_t n_bytes = columns.n_in * CHANNELS, side = patches.side;
    const size_t plane = rounded_up(columns.n_out, BLOCK);
    // Not a multiple of 4096 bytes apart: those would compete for the same cache lines.
    const size_t row_floats = CHANNELS * plane + BLOCK;
    size_t most = 0;  // input rows that a patch row depends on
    for (size_t y = first * side; y < last * side; y += side)
        most = std::max<size_t>(most, rows.first[y + side - 1] + rows.n_taps - rows.first[y]);
    const size_t n_kept = rounded_up(most + N_ROWS - 1, N_ROWS);
    std::vector<float> lanes(n_bytes * N_ROWS), kept(n_kept * row_floats);
    std::vector<const float *> inputs(most);
    size_t done = rows.first[first * side];  // rows before it are resized along the width
    for (size_t patch_row = first; patch_row < last; patch_row++) {
        const size_t top = patch_row * side, input = rows.first[top];
        const size_t needed = rows.first[top + side - 1] + rows.n_taps;
        for (; done < needed; done += N_ROWS) {
            const uint8_t *from[N_ROWS];
            float *to[N_ROWS];
            for (size_t i = 0; i < N_ROWS; i++) {  // past the frame its last row is repeated
                ptrdiff_t row = std::min(done + i, rows.n_in - 1);
                from[i] = frame.pixels + row * frame.row_bytes;
                to[i] = &kept[(done + i) % n_kept * row_floats];
            }
            if (columns.same) {
                for (size_t i = 0; i < N_ROWS; i++) split(from[i], columns.n_in, plane, to[i]);
            } else {
                to_lanes(from, n_bytes, lanes.data());
                resize_width<N>(lanes.data(), columns, plane, to);
            }
        }
        for (size_t i = input; i < needed; i++) inputs[i - input] = &kept[i % n_kept * row_floats];
        float *patch = patches.values + patch_row * (columns.n_out / side) * patches.stride;
        for (size_t x = 0; x < columns.n_out; x += side, patch += patches.stride)
            for (size_t c = 0; c < CHANNELS; c++)
                for (size_t y = 0; y < side; y++)
                    resize_height<N>(&inputs[rows.first[top + y] - input], c * plane + x,
                                  rows.weights + (top + y) * rows.n_taps, rows.n_taps,
                                  frame.gain[c], frame.offset[c], side,
                                  patch + (c * side + y) * side);
    }
}

AVX2 void patch_rows_avx2(const Frame &frame, size_t first, size_t last, Patches patches) {
    patch_rows_body<8>(frame, first, last, patches);
}
void patch_rows_portable(const Frame &frame, size_t first, size_t last, Patches patches) {
    patch_rows_body<4>(frame, first, last, patches);
}

Axis axis_of(size_t n_in, const Vector<int32_t> &first, const Input<float> &weights) {
    require_shape(weights, first.size(), weights.shape(1), "weights are not [outputs, taps]");
    require(first.size() > 0 && weights.shape(1) > 0, "an axis has no outputs or no taps");
    require(weights.shape(1) <= n_in, "an axis has more taps than inputs");
    int32_t before = 0, most = static_cast<int32_t>(n_in - weights.shape(1));
    bool same = n_in == first.size() && weights.shape(1) == 1;
    for (size_t i = 0; i < first.size(); i++) {
        require(before <= first.data()[i] && first.data()[i] <= most,
                "taps descend or leave the frame");
        before = first.data()[i];
        same = same && before == static_cast<int32_t>(i) && weights.data()[i] == 1;
    }
    return {first.data(), weights.data(), n_in, first.size(), weights.shape(1), same};
}

void patches(nb::ndarray<const uint8_t, nb::ndim<3>, nb::device::cpu> pixels,
             Vector<int32_t> first_column, Input<float> column_weights, Vector<int32_t> first_row,
             Input<float> row_weights, Vector<float> gain, Vector<float> offset,
             nb::ndarray<float, nb::ndim<2>, nb::device::cpu> out, int n_threads, bool portable) {
    require(pixels.shape(2) == CHANNELS && pixels.stride(2) == 1 && pixels.stride(1) == CHANNELS,
            "pixels are not [height, width, 3] with whole rows");
    require(gain.size() == CHANNELS && offset.size() == CHANNELS, "gain or offset are not [3]");
    const Frame frame = {pixels.data(),
                         pixels.stride(0),
                         axis_of(pixels.shape(1), first_column, column_weights),
                         axis_of(pixels.shape(0), first_row, row_weights),
                         gain.data(),
                         offset.data()};
    size_t side = 1;
    while (CHANNELS * side * side < out.shape(1)) side++;
    const size_t n_rows = frame.rows.n_out, n_columns = frame.columns.n_out;
    require(CHANNELS * side * side == out.shape(1) && out.stride(1) == 1,
            "out is not [patches, 3 * side * side] with whole patches");
    require(n_rows % side == 0 && n_columns % side == 0, "a side is no multiple of a patch's");
    require(out.shape(0) == n_rows / side * (n_columns / side), "out has not one row a patch");
    const Patches to = {out.data(), out.stride(0), side};
    auto patch_rows = has_avx2() && !portable ? patch_rows_avx2 : patch_rows_portable;
    // In few bands: each begins with the input rows that it shares with the one above.
    const size_t n = n_rows / side, n_bands = std::min<size_t>(n, 8);
    parallel(n_bands, n_threads, [=, &frame](size_t first, size_t last, int) {
        patch_rows(frame, n * first / n_bands, n * last / n_bands, to);
    });
}

}  // namespace

void bind_pixels(nb::module_ &module) {
    module.def("patches", patches, nb::arg("pixels").noconvert(),
               nb::arg("first_column").noconvert(), nb::arg("column_weights").noconvert(),
               nb::arg("first_row").noconvert(), nb::arg("row_weights").noconvert(),
               nb::arg("gain").noconvert(), nb::arg("offset").noconvert(),
               nb::arg("out").noconvert(), nb::arg("n_threads"), nb::arg("portable") = false);
}
