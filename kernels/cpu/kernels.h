// What the packing kernels share: how a matrix arrives from numpy, how rows are divided among
// threads, and how the plain loops become AVX2.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "floats.h"
#include "pool.h"

namespace nb = nanobind;

// The compiler emits such a function (or template) twice, for any x86-64 and for AVX2; the loader
// takes the one that this processor can run. aarch64 always has NEON and needs no choice.
#if defined(__x86_64__) && defined(__GLIBC__)
#define MULTIVERSION __attribute__((target_clones("avx2", "default")))
#else
#define MULTIVERSION
#endif

// A function for AVX2, and whether this processor can run it, where both paths must be reachable.
#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2")))
inline bool has_avx2() { return __builtin_cpu_supports("avx2"); }
#else
#define AVX2
inline bool has_avx2() { return false; }
#endif

// Contiguous matrices [rows, columns]. A bfloat16 is passed as its bits, uint16; float8 as uint8.
template <class T>
using Input = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Output = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

inline void require(bool condition, const char *message) {
    if (!condition) throw std::invalid_argument(message);
}

template <class Array>
void require_shape(const Array &array, size_t rows, size_t columns, const char *message) {
    require(array.shape(0) == rows && array.shape(1) == columns, message);
}

// Calls work(first, last, piece) for ranges of 0..n, on at most n_threads threads (0: all), without
// the interpreter's lock. There are n_pieces(n) of them.
constexpr size_t MAX_PIECES = 256;
inline size_t n_pieces(size_t n) { return std::min(n, MAX_PIECES); }

template <class Work>
void parallel(size_t n, int n_threads, const Work &work) {
    require(n_threads >= 0, "n_threads is negative");
    nb::gil_scoped_release release;
    auto body = [n, &work](size_t piece) {
        work(n * piece / n_pieces(n), n * (piece + 1) / n_pieces(n), piece);
    };
    pool::run(
        n_pieces(n), n_threads,
        [](const void *context, size_t piece, int) {
            (*static_cast<const decltype(body) *>(context))(piece);
        },
        &body);
}

void bind_amax(nb::module_ &module);
void bind_bins(nb::module_ &module);
void bind_fp8(nb::module_ &module);
void bind_int4(nb::module_ &module);
void bind_linear(nb::module_ &module);
void bind_mel(nb::module_ &module);
void bind_nvfp4(nb::module_ &module);
void bind_pixels(nb::module_ &module);
void bind_pool(nb::module_ &module);
void bind_sequence(nb::module_ &module);
