// What every processor runs. On aarch64 this is NEON, which each of them has.
#include "floats.h"
#include "kernel_table.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {
#include "vector_portable.h"
#include "kernels_body.h"
}  // namespace

#if defined(__aarch64__)
extern const KernelTable PORTABLE_KERNELS = table("neon");
#else
extern const KernelTable PORTABLE_KERNELS = table("portable");
#endif
