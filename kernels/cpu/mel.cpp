// Log-mel features. Several frames at a time, each in a SIMD lane of its own: every step below is
// written as for one frame. Double precision throughout: float32 transforms round away cells whose
// energy is far below their neighbours'.
#include <array>
#include <cmath>
#include <cstring>

#include "kernels.h"

namespace {

constexpr size_t HOP = 160, WINDOW = 400, FFT = 512, HALF = FFT / 2;
constexpr size_t N_BINS = HALF + 1;
constexpr float PREEMPHASIS = 0.97f;
constexpr double LOG_GUARD = 0x1p-24, STD_GUARD = 1e-5;

// What one instruction computes: 4 frames with AVX2, 2 with NEON and SSE2.
template <size_t N>
struct Simd {
    typedef float Floats __attribute__((vector_size(N * sizeof(float))));
    typedef double Lanes __attribute__((vector_size(N * sizeof(double))));
    typedef uint64_t Bits __attribute__((vector_size(N * sizeof(double))));
};

template <class Lanes>
struct Complex {
    Lanes re, im;
};

struct Tables {
    std::array<double, WINDOW> hann;       // symmetric: its first and last values are 0
    std::array<double, FFT> cosine, sine;  // of 2 pi k / FFT
    std::array<uint8_t, HALF> place;       // where the transform below leaves its k-th output

    Tables() {
        const double turn = 2 * std::acos(-1.0);
        for (size_t i = 0; i < WINDOW; i++) hann[i] = 0.5 - 0.5 * std::cos(turn * i / (WINDOW - 1));
        for (size_t k = 0; k < FFT; k++) {
            cosine[k] = std::cos(turn * k / FFT);
            sine[k] = std::sin(turn * k / FFT);
        }
        for (size_t k = 0; k < HALF; k++)  // its four digits to the base 4, reversed
            place[k] = static_cast<uint8_t>((k & 3) << 6 | (k & 12) << 2 | (k & 48) >> 2 | k >> 6);
    }
};

const Tables TABLES;

template <class L>
INLINE Complex<L> operator+(Complex<L> a, Complex<L> b) { return {a.re + b.re, a.im + b.im}; }
template <class L>
INLINE Complex<L> operator-(Complex<L> a, Complex<L> b) { return {a.re - b.re, a.im - b.im}; }

// a * e^(-2 pi i k / FFT)
template <class L>
INLINE Complex<L> turned(Complex<L> a, size_t k) {
    double c = TABLES.cosine[k], s = TABLES.sine[k];
    return {a.re * c + a.im * s, a.im * c - a.re * s};
}

// Even samples of each frame as real parts, odd ones as imaginary, windowed, then zeros. Zeros at
// the end instead of on both sides shift a frame's phase, which power does not see.
template <size_t N>
INLINE void load(const float *signal, Complex<typename Simd<N>::Lanes> *z) {
    using Lanes = typename Simd<N>::Lanes;
    for (size_t i = 0; i < WINDOW; i++) {
        typename Simd<N>::Floats samples;
        for (size_t lane = 0; lane < N; lane++) samples[lane] = signal[lane * HOP + i];
        Lanes windowed = __builtin_convertvector(samples, Lanes) * TABLES.hann[i];
        (i % 2 ? z[i / 2].im : z[i / 2].re) = windowed;
    }
    for (size_t i = WINDOW / 2; i < HALF; i++) z[i].re = z[i].im = Lanes{};
}

// One butterfly of radix 4, before its outputs are turned.
template <class L>
INLINE void butterfly(Complex<L> *z, size_t step, Complex<L> out[4]) {
    Complex<L> a = z[0] + z[2 * step], b = z[0] - z[2 * step];
    Complex<L> c = z[step] + z[3 * step], d = z[step] - z[3 * step];
    Complex<L> minus_i_d = {d.im, -d.re};
    out[0] = a + c;
    out[1] = b + minus_i_d;
    out[2] = a - c;
    out[3] = b - minus_i_d;
}

// Forward transform of HALF values in place, decimation in frequency.
template <class L>
INLINE void transform(Complex<L> *z) {
    for (size_t size = HALF; size > 1; size /= 4) {
        const size_t step = size / 4, turn = FFT / size;
        Complex<L> out[4];
        for (size_t start = 0; start < HALF; start += size) {
            butterfly(z + start, step, out);
            for (size_t r = 0; r < 4; r++) z[start + r * step] = out[r];
        }
        for (size_t j = 1; j < step; j++) {
            for (size_t start = j; start < HALF; start += size) {
                butterfly(z + start, step, out);
                z[start] = out[0];
                for (size_t r = 1; r < 4; r++)
                    z[start + r * step] = turned(out[r], r * j * turn);
            }
        }
    }
}

template <class L>
INLINE L squared(Complex<L> a) { return a.re * a.re + a.im * a.im; }

// Power of the real frames' FFT bins, from the transform of their even and odd samples.
template <class L>
INLINE void power_of(const Complex<L> *z, L *power) {
    const auto &place = TABLES.place;
    Complex<L> first = z[0];
    power[0] = (first.re + first.im) * (first.re + first.im);
    power[HALF] = (first.re - first.im) * (first.re - first.im);
    power[HALF / 2] = squared(z[place[HALF / 2]]);
    for (size_t k = 1; k < HALF / 2; k++) {
        Complex<L> a = z[place[k]], b = z[place[HALF - k]];
        Complex<L> even = {a.re + b.re, a.im - b.im};                  // twice their transforms
        Complex<L> odd = turned(Complex<L>{a.im + b.im, b.re - a.re}, k);
        power[k] = 0.25 * squared(even + odd);
        power[HALF - k] = 0.25 * squared(even - odd);
    }
}

template <class To, class From>
INLINE To bits_as(From from) {
    To to;
    static_assert(sizeof to == sizeof from);
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// The natural logarithm of normal numbers above 0, within 1 unit in the last place or so.
// Source: fdlibm e_log.c, its polynomial for log((1 + s) / (1 - s)).
template <size_t N>
INLINE typename Simd<N>::Lanes log_of(typename Simd<N>::Lanes x) {
    using Lanes = typename Simd<N>::Lanes;
    using Bits = typename Simd<N>::Bits;
    constexpr uint64_t SQRT_HALF = 0x3fe6a09e667f3bcd, EXPONENT = uint64_t{0x7ff} << 52;
    constexpr double LN2_HIGH = 6.93147180369123816490e-01, LN2_LOW = 1.90821492927058770002e-10;
    // x = 2^exponent * (1 + f), 1 + f in sqrt(1/2)..sqrt(2); no integer of 64 bits is converted,
    // as AVX2 cannot: its bits are put below 2^52.
    Bits shifted = bits_as<Bits>(x) - SQRT_HALF + (uint64_t{1023} << 52);
    Bits exponent = shifted & EXPONENT;
    Lanes f = bits_as<Lanes>(bits_as<Bits>(x) - exponent + (uint64_t{1023} << 52)) - 1.0;
    Lanes n = bits_as<Lanes>((exponent >> 52) | bits_as<uint64_t>(0x1p52)) - (0x1p52 + 1023);
    Lanes s = f / (2.0 + f), z = s * s, w = z * z;
    Lanes odd = w * (3.999999999940941908e-01 +
                     w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
    Lanes even = z * (6.666666666666735130e-01 +
                      w * (2.857142874366239149e-01 +
                           w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
    Lanes half_square = 0.5 * f * f;
    return n * LN2_HIGH - ((half_square - (s * (half_square + (odd + even)) + n * LN2_LOW)) - f);
}

struct Sound {
    const float *samples;
    ptrdiff_t n, start;  // of the first frame, from samples[0]: there are zeros around the sound
};

// The samples of one group of frames, without the low frequencies. In float32, as the encoder was
// trained: in the quiet high bins the rounding of this difference is all there is.
INLINE void emphasise(Sound sound, ptrdiff_t start, ptrdiff_t n, float *__restrict out) {
    const ptrdiff_t first = std::max<ptrdiff_t>(start, 1);
    const ptrdiff_t last = std::min<ptrdiff_t>(start + n, sound.n);
    std::memset(out, 0, n * sizeof(float));
    if (start <= 0 && -start < n && sound.n > 0) out[-start] = sound.samples[0];
    for (ptrdiff_t i = first; i < last; i++)
        out[i - start] = sound.samples[i] - PREEMPHASIS * sound.samples[i - 1];
}

struct Filters {
    const float *weights;  // [n, N_BINS]
    const int32_t *bounds;  // [n, 2]: first and last + 1 bin of each that is not zero
    size_t n;
};

// Frames first..last - 1: frame t begins at sample sound.start + t * HOP.
template <size_t N>
INLINE void frames_body(Sound sound, size_t first, size_t last, Filters filters, double *out) {
    using Lanes = typename Simd<N>::Lanes;
    constexpr size_t N_SAMPLES = (N - 1) * HOP + WINDOW;
    float signal[N_SAMPLES];
    Complex<Lanes> z[HALF];
    Lanes power[N_BINS];
    for (size_t frame = first; frame < last; frame += N) {
        emphasise(sound, sound.start + static_cast<ptrdiff_t>(frame * HOP), N_SAMPLES, signal);
        load<N>(signal, z);
        transform(z);
        power_of(z, power);
        for (size_t m = 0; m < filters.n; m++) {
            const float *weights = filters.weights + m * N_BINS;
            Lanes sum = {};
            for (int32_t k = filters.bounds[2 * m]; k < filters.bounds[2 * m + 1]; k++)
                sum += power[k] * static_cast<double>(weights[k]);
            Lanes log = log_of<N>(sum + LOG_GUARD);
            for (size_t lane = 0; lane < std::min(N, last - frame); lane++)
                out[(frame + lane) * filters.n + m] = log[lane];
        }
    }
}

// Each column to mean 0 and standard deviation 1. Differences to the first row are summed: of a
// constant column they are exactly 0.
INLINE void normalize_body(const double *log, size_t n, size_t n_columns, double *mean,
                           double *factor, float *out) {
    for (size_t m = 0; m < n_columns; m++) mean[m] = factor[m] = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t m = 0; m < n_columns; m++) mean[m] += log[i * n_columns + m] - log[m];
    for (size_t m = 0; m < n_columns; m++) mean[m] = log[m] + mean[m] / n;
    for (size_t i = 0; i < n; i++)
        for (size_t m = 0; m < n_columns; m++) {
            double difference = log[i * n_columns + m] - mean[m];
            factor[m] += difference * difference;
        }
    for (size_t m = 0; m < n_columns; m++)
        factor[m] = 1 / (std::sqrt(factor[m] / (n - 1)) + STD_GUARD);
    for (size_t i = 0; i < n; i++)
        for (size_t m = 0; m < n_columns; m++)
            out[i * n_columns + m] =
                static_cast<float>((log[i * n_columns + m] - mean[m]) * factor[m]);
}

AVX2 void frames_avx2(Sound sound, size_t first, size_t last, Filters filters, double *out) {
    frames_body<4>(sound, first, last, filters, out);
}
void frames_portable(Sound sound, size_t first, size_t last, Filters filters, double *out) {
    frames_body<2>(sound, first, last, filters, out);
}

AVX2 void normalize_avx2(const double *log, size_t n, size_t n_columns, double *mean,
                         double *factor, float *out) {
    normalize_body(log, n, n_columns, mean, factor, out);
}
void normalize_portable(const double *log, size_t n, size_t n_columns, double *mean,
                        double *factor, float *out) {
    normalize_body(log, n, n_columns, mean, factor, out);
}

void log_mel_frames(Vector<float> samples, ptrdiff_t start, Input<float> weights,
                    Input<int32_t> bounds, Output<double> out, int n_threads, bool portable) {
    const size_t n = out.shape(0), n_filters = weights.shape(0);
    require_shape(out, n, n_filters, "out is not [frames, filters]");
    require_shape(weights, n_filters, N_BINS, "weights are not [filters, 257]");
    require_shape(bounds, n_filters, 2, "bounds are not [filters, 2]");
    for (size_t m = 0; m < n_filters; m++) {
        int32_t first = bounds.data()[2 * m], last = bounds.data()[2 * m + 1];
        require(0 <= first && first <= last && last <= int32_t{N_BINS}, "bounds are not in 0..257");
    }
    const Filters filters = {weights.data(), bounds.data(), n_filters};
    const Sound sound = {samples.data(), static_cast<ptrdiff_t>(samples.size()), start};
    double *to = out.data();
    auto frames = has_avx2() && !portable ? frames_avx2 : frames_portable;
    constexpr size_t GROUP = 4;
    parallel((n + GROUP - 1) / GROUP, n_threads, [=](size_t first, size_t last, int) {
        frames(sound, first * GROUP, std::min(n, last * GROUP), filters, to);
    });
}

void normalize_columns(Input<double> log, Output<float> out, bool portable) {
    const size_t n = log.shape(0), n_columns = log.shape(1);
    require_shape(out, n, n_columns, "out is not [rows, columns]");
    require(n > 1, "fewer than 2 rows have no deviation");
    auto normalize = has_avx2() && !portable ? normalize_avx2 : normalize_portable;
    const double *from = log.data();
    float *to = out.data();
    nb::gil_scoped_release release;
    std::vector<double> mean(n_columns), factor(n_columns);
    normalize(from, n, n_columns, mean.data(), factor.data(), to);
}

}  // namespace

void bind_mel(nb::module_ &module) {
    module.def("log_mel_frames", log_mel_frames, nb::arg("samples").noconvert(), nb::arg("start"),
               nb::arg("weights").noconvert(), nb::arg("bounds").noconvert(),
               nb::arg("out").noconvert(), nb::arg("n_threads"), nb::arg("portable") = false);
    module.def("normalize_columns", normalize_columns, nb::arg("log").noconvert(),
               nb::arg("out").noconvert(), nb::arg("portable") = false);
}
