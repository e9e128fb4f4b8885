#include "kernel_table.h"

#include <atomic>

const KernelTable *const *runnable_kernels() {
#if defined(__x86_64__)
    static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                             __builtin_cpu_supports("f16c");
    static const KernelTable *const all[] = {&AVX_VNNI_KERNELS, &AVX2_KERNELS, &PORTABLE_KERNELS,
                                             nullptr};
    return !avx2 ? all + 2 : __builtin_cpu_supports("avxvnni") ? all : all + 1;
#else
    static const KernelTable *const all[] = {&PORTABLE_KERNELS, nullptr};
    return all;
#endif
}

static std::atomic<const KernelTable *> chosen{nullptr};

const KernelTable &kernels() {
    const KernelTable *table = chosen.load(std::memory_order_acquire);
    return table ? *table : *runnable_kernels()[0];
}

void use_kernels(const KernelTable &table) { chosen.store(&table, std::memory_order_release); }
