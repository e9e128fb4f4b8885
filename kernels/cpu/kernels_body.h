// Included once by each instruction set's file, behind its F32x8: the table of its inner loops.
#include "vector_linear.h"
#include "vector_product.h"
#include "vector_quantized.h"
#include "vector_sequence.h"

constexpr KernelTable table(const char *name) {
    return {name,     gemv,           gemv_quantized, quantize, unpack,     gemm,     gemm_outer,
            rms_norm, gated_rms_norm, relu2,          scale,    add_scaled, convolve, state_step,
            softmax};
}
