// What every kernel file shares: how a matrix arrives from numpy, how rows are divided among
// threads, and how the plain loops become AVX2.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <thread>
#include <vector>

namespace nb = nanobind;

// The compiler emits such a function (or template) twice, for any x86-64 and for AVX2; the loader
// takes the one that this processor can run. aarch64 always has NEON and needs no choice.
#if defined(__x86_64__) && defined(__GLIBC__)
#define MULTIVERSION __attribute__((target_clones("avx2", "default")))
#else
#define MULTIVERSION
#endif
// What such a function calls becomes AVX2 with it only where it is inlined.
#define INLINE inline __attribute__((always_inline))

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

// How many threads share n items; n_threads 0: all cores.
inline int thread_count(size_t n, int n_threads) {
    require(n_threads >= 0, "n_threads is negative");
    size_t wanted = n_threads ? n_threads : std::max(1u, std::thread::hardware_concurrency());
    return static_cast<int>(std::max<size_t>(1, std::min(wanted, n)));
}

// Calls work(first, last, thread) for consecutive ranges of 0..n, one a thread. The calling thread
// takes the first range and does not hold the interpreter's lock meanwhile.
template <class Work>
void parallel(size_t n, int n_threads, Work work) {
    nb::gil_scoped_release release;
    int count = thread_count(n, n_threads);
    std::vector<std::thread> threads;
    for (int t = 1; t < count; t++)
        threads.emplace_back(work, n * t / count, n * (t + 1) / count, t);
    work(size_t{0}, n / count, 0);
    for (std::thread &thread : threads) thread.join();
}

void bind_amax(nb::module_ &module);
void bind_fp8(nb::module_ &module);
void bind_int4(nb::module_ &module);
void bind_mel(nb::module_ &module);
void bind_nvfp4(nb::module_ &module);
void bind_pixels(nb::module_ &module);
