// Which bin each logit falls into, and what the tokens of a bin weigh: what sampling needs to find a
// token without sorting a vocabulary.
#include "arrays.h"

#include <cmath>

// A weight is exp(-x), x being how far a logit lies below the largest, in temperatures. Within a bin
// x = (bin + r) * width, so exp(-bin * width) is common, and of exp(-r * width) five terms are enough:
// r * width is below 0.01 (40 temperatures in 4095 bins), and 0.01^5 / 120 below 1e-12.
// The compiler makes vectors of all but the additions, which go anywhere: so they are apart.
constexpr size_t BLOCK = 64;

MULTIVERSION static void add_to_bins(const float *logits, size_t n, double most, double scale,
                                     double width, int last, uint16_t *bins, double *mass,
                                     int64_t *counts) {
    int bin[BLOCK];
    double weight[BLOCK];
    for (size_t start = 0; start < n; start += BLOCK) {
        size_t size = std::min(BLOCK, n - start);
        for (size_t i = 0; i < size; i++) {
            double place = (most - logits[start + i]) * scale;
            double within = place < last ? place : last;  // NaN is in the last, too
            bin[i] = int(within > 0.0 ? within : 0.0);
            double r = (place - bin[i]) * width;
            weight[i] = 1.0 + r * (-1.0 + r * (1.0 / 2 + r * (-1.0 / 6 + r * (1.0 / 24))));
        }
        for (size_t i = 0; i < size; i++) {
            bins[start + i] = uint16_t(bin[i]);
            mass[bin[i]] += weight[i];
            counts[bin[i]]++;
        }
    }
}

static void bin_logits(Vector<float> logits, double most, double scale, double width,
                       nb::ndarray<uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> bins,
                       nb::ndarray<double, nb::ndim<1>, nb::c_contig, nb::device::cpu> mass,
                       nb::ndarray<int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> counts) {
    size_t n = logits.shape(0), last = mass.shape(0) - 1;
    require(bins.shape(0) == n, "bins are not one for each logit");
    require(last < 65536 && counts.shape(0) == last + 1, "mass and counts are not of 1 to 65536 bins");
    require(scale >= 0.0 && width >= 0.0 && width <= 0.01, "width is not of 0 to 0.01 temperatures");
    LetOthersRun release(8 * n);
    std::fill_n(mass.data(), last + 1, 0.0);
    std::fill_n(counts.data(), last + 1, 0);
    add_to_bins(logits.data(), n, most, scale, width, int(last), bins.data(), mass.data(),
                counts.data());
    for (size_t bin = 0; bin < last; bin++) mass.data()[bin] *= std::exp(-double(bin) * width);
    mass.data()[last] = 0.0;
}

void bind_bins(nb::module_ &module) {
    module.def("bin_logits", bin_logits, nb::arg("logits").noconvert(), nb::arg("most"),
               nb::arg("scale"), nb::arg("width"), nb::arg("bins").noconvert(),
               nb::arg("mass").noconvert(), nb::arg("counts").noconvert());
}
