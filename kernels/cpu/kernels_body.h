// Included once by each instruction set's file, behind its F32: the table of its inner loops.
#include "vector_linear.h"
#include "vector_product.h"
#include "vector_quantized.h"
#include "vector_sequence.h"

constexpr KernelTable table(const char *name) {
    return {name,       gemv,     gemv_int4,  quantize_int4,  product_nvfp4, quantize_nvfp4,
            PANEL_ROWS, unpack,   gemm,       gemm_outer,     rms_norm,      gated_rms_norm,
            relu2,      scale,    add_scaled, convolve,       state_step,    softmax};
}
