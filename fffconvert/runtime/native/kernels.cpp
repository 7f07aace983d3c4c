// All kernels for one instruction set: compiled once for each, with its flags, VEC_BYTES and FFF_SET.
#include "backward.h"
#include "forward.h"

#define FFF_JOIN(a, b) a##b
#define FFF_NAME(a, set) FFF_JOIN(a, set)

extern "C" void FFF_NAME(fff_forward_, FFF_SET)(const fff_layer* layer, const void* x, int64_t x_stride,
                                                int64_t tokens, void* y, int64_t io_type, float* logits,
                                                int64_t* leaf, int64_t threads) {
    switch (layer->row_type) {
        case FFF_FLOAT32:
            return forward<float>(*layer, x, x_stride, tokens, y, io_type, logits, leaf, threads);
        case FFF_BFLOAT16:
            return forward<bf16>(*layer, x, x_stride, tokens, y, io_type, logits, leaf, threads);
        default:
            return forward<int8_t>(*layer, x, x_stride, tokens, y, io_type, logits, leaf, threads);
    }
}

extern "C" void FFF_NAME(fff_backward_, FFF_SET)(const fff_layer* layer, const float* grad_y,
                                                 const float* grad_logits, const float* x, int64_t tokens,
                                                 const float* logits, const int64_t* leaf,
                                                 const fff_gradients* gradients, int64_t threads) {
    backward({*layer, grad_y, grad_logits, x, tokens, logits, leaf, *gradients}, threads);
}
