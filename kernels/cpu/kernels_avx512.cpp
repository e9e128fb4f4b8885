// AVX-512 with VNNI and VBMI: Intel's servers since 2021, AMD since 2022.
#include "floats.h"
#include "kernel_table.h"

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi"))), \
    apply_to = function)
#else
#pragma GCC diagnostic ignored "-Wuninitialized"  // in GCC 12's own header: its bug 105593
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")
#endif

namespace {
#include "vector_avx512.h"
#include "kernels_body.h"
}  // namespace

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

extern const KernelTable AVX512_KERNELS = table("avx512");
#endif
