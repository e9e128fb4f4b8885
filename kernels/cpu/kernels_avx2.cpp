// AVX2, FMA and F16C: every x86-64 processor since 2013 (Intel) and 2015 (AMD).
#include "floats.h"
#include "kernel_table.h"

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace {
#include "vector_avx2.h"
#include "kernels_body.h"
}  // namespace

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

extern const KernelTable AVX2_KERNELS = table("avx2");
#endif
