// AVX2, FMA and F16C, and VNNI beside them: Intel since 2021, AMD since 2024.
#include "floats.h"
#include "kernel_table.h"

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif

namespace {
#define EDGE_VNNI
#include "vector_avx2.h"
#include "kernels_body.h"
}  // namespace

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

extern const KernelTable AVX_VNNI_KERNELS = table("avx-vnni");
#endif
