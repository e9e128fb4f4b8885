#include "kernel_table.h"

#include <atomic>

namespace {

struct Runnable {
    const KernelTable *tables[5] = {};
    Runnable() {
        const KernelTable **next = tables;
#if defined(__x86_64__)
        bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
        bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
        if (avx2 && avx512) *next++ = &AVX512_KERNELS;
        if (avx2 && __builtin_cpu_supports("avxvnni")) *next++ = &AVX_VNNI_KERNELS;
        if (avx2) *next++ = &AVX2_KERNELS;
#endif
        *next = &PORTABLE_KERNELS;
    }
};

}  // namespace

const KernelTable *const *runnable_kernels() {
    static const Runnable runnable;
    return runnable.tables;
}

static std::atomic<const KernelTable *> chosen{nullptr};

const KernelTable &kernels() {
    const KernelTable *table = chosen.load(std::memory_order_acquire);
    return table ? *table : *runnable_kernels()[0];
}

void use_kernels(const KernelTable &table) { chosen.store(&table, std::memory_order_release); }
