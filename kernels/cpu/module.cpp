// edge._kernels: the native kernels. edge/_kernels.pyi says what each takes.
#include "kernels.h"

NB_MODULE(_kernels, module) {
    bind_amax(module);
    bind_bins(module);
    bind_fp8(module);
    bind_int4(module);
    bind_linear(module);
    bind_mel(module);
    bind_nvfp4(module);
    bind_pixels(module);
    bind_pool(module);
    bind_sequence(module);
}
