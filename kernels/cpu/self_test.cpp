// The inner loops of every instruction set of this machine against plain loops in double precision,
// without Python: for processors that tests reach only through an emulator.
//   aarch64-linux-gnu-g++ -std=c++17 -O2 -static kernels/cpu/{self_test,kernel_table,kernels_*}.cpp
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "floats.h"
#include "kernel_table.h"

static std::mt19937 random_bits(1);
static int n_failed = 0;

static std::vector<float> normal(size_t n) {
    std::normal_distribution<float> values;
    std::vector<float> x(n);
    for (float &v : x) v = values(random_bits);
    return x;
}

struct Weight {
    std::vector<uint8_t> values, block_scale;
    Matrix matrix;

    Weight(Format format, size_t n, size_t k)
        : values(n * value_bytes(format, k)), block_scale(n * scale_bytes(format, k)) {
        if (format == Format::FLOAT32) {
            std::vector<float> x = normal(n * k);
            std::memcpy(values.data(), x.data(), values.size());
        } else if (format == Format::BFLOAT16) {
            std::vector<float> x = normal(n * k);
            for (size_t i = 0; i < x.size(); i++) {
                uint32_t bits = bits_of(x[i]) >> 16;
                std::memcpy(&values[2 * i], &bits, 2);
            }
        } else {
            for (uint8_t &v : values) v = random_byte(format == Format::FP8);
        }
        for (uint8_t &v : block_scale) v = random_byte(true);
        if (format == Format::INT4)
            for (size_t i = 0; i < block_scale.size(); i += 4) {
                float scale = 0.01f * (1 + i % 7);
                std::memcpy(&block_scale[i], &scale, 4);
            }
        matrix = {format, n, k, values.data(), block_scale.data(), 0.75f};
    }

    static uint8_t random_byte(bool number) {
        uint8_t byte = static_cast<uint8_t>(random_bits());
        return number && (byte & 0x7f) == 0x7f ? 0x38 : byte;
    }

    double at(size_t i, size_t j) const {
        static const double E2M1[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
        size_t k = matrix.k, index = i * k + j;
        float x;
        uint16_t bits;
        switch (matrix.format) {
            case Format::FLOAT32: std::memcpy(&x, &values[4 * index], 4); return x;
            case Format::BFLOAT16: std::memcpy(&bits, &values[2 * index], 2); return to_float(bits);
            case Format::FP8: return double{float_of_e4m3(values[index])} * matrix.scale;
            case Format::INT4: {
                int code = values[i / 2 * k + j] >> 4 * (i % 2) & 15;
                std::memcpy(&x, &block_scale[(i * k / INT4_BLOCK + j / INT4_BLOCK) * 4], 4);
                return (code < 8 ? code : code - 16) * double{x};
            }
            default: {
                size_t tile = i / NVFP4_TILE * NVFP4_TILE, group = j / NVFP4_GROUP;
                size_t rows = std::min(NVFP4_TILE, matrix.n - tile), half = j % NVFP4_GROUP / 8;
                size_t byte = tile * k / 2 + ((2 * group + half) * rows + i - tile) * 4 + j % 4;
                int code = values[byte] >> (j & 4) & 15;
                size_t scale = tile * k / NVFP4_GROUP + group * rows + i - tile;
                double size = E2M1[code & 7] * float_of_e4m3(block_scale[scale]);
                return (code & 8 ? -size : size) * matrix.scale;
            }
        }
    }
};

static void expect(const char *what, const KernelTable &table, Format format, size_t k, double error,
                   double bound) {
    if (error <= bound) return;
    std::printf("%s of %s, format %d, %zu columns: error %g above %g\n", what, table.name,
                static_cast<int>(format), k, error, bound);
    n_failed++;
}

static void check(const KernelTable &table, Format format, size_t n, size_t k) {
    Weight w(format, n, k);
    std::vector<float> x = normal(3 * k), y(n), panel(n * k), many(3 * n);
    table.gemv(w.matrix, 0, n, x.data(), y.data());
    table.unpack(w.matrix, 0, n, 0, k, panel.data());
    table.gemm(x.data(), k, 3, panel.data(), k, n, k, many.data(), n, false);
    std::vector<float> coarse(n);
    if (format == Format::INT4) {
        std::vector<int8_t> codes(k);
        std::vector<float> scales(k / 4);
        std::vector<int32_t> offsets(k / 4);
        QuantizedRow row{codes.data(), scales.data(), offsets.data()};
        table.quantize_int4(x.data(), k, row);
        table.gemv_int4(w.matrix, 0, n, row, coarse.data());
    }
    if (format == Format::NVFP4) {  // the first of as many rows as go at once
        size_t n_x = 1 + k / 16 % table.panel_rows;
        std::vector<QuantizedGroup> groups(n_x * k / NVFP4_GROUP);
        for (size_t i = 0; i < n_x; i++) table.quantize_nvfp4(x.data(), k, groups.data() + i, n_x);
        std::vector<float> all(n_x * n);
        table.product_nvfp4(w.matrix, 0, n, groups.data(), n_x, all.data(), n);
        std::copy_n(all.data() + (n_x - 1) * n, n, coarse.data());
    }
    bool quantized = format == Format::INT4 || format == Format::NVFP4;
    for (size_t i = 0; i < n; i++) {
        double sum = 0, size = 0, steps = 0;
        for (size_t j = 0; j < k; j++) {
            double weight = w.at(i, j), largest = 0;
            for (size_t t = j / 16 * 16; t < std::min(k, j / 16 * 16 + 16); t++)
                largest = std::max(largest, std::fabs(double{x[t]}));
            sum += weight * x[j];
            size += std::fabs(weight * x[j]);
            steps += std::fabs(weight) * largest / 254 * 1.0001;
            expect("unpack", table, format, k, std::fabs(panel[i * k + j] - weight),
                   std::fabs(weight) * 0x1p-22);
        }
        // k + 3 roundings of the absolute sum; half a step of each activation.
        double bound = static_cast<double>(k + 3) * 0x1p-24 * size;
        expect("gemv", table, format, k, std::fabs(y[i] - sum), bound);
        expect("gemm", table, format, k, std::fabs(many[i] - sum), bound);
        if (quantized)
            expect("product of codes", table, format, k, std::fabs(coarse[i] - sum), bound + steps);
    }
}

int main() {
    int n_checked = 0;
    for (auto table = runnable_kernels(); *table; table++) {
        for (size_t k = 1; k < 300; k += k < 40 ? 1 : 37) {
            for (Format format : {Format::FLOAT32, Format::BFLOAT16, Format::FP8})
                check(**table, format, 6, k), n_checked++;
            check(**table, Format::NVFP4, 6 + k % 40, 16 * k), n_checked++;
            if (k < 12) check(**table, Format::INT4, 6, 128 * k), n_checked++;
        }
        std::printf("%s: checked\n", (*table)->name);
    }
    std::printf("%d checks, %d failures\n", n_checked, n_failed);
    return n_failed != 0;
}
