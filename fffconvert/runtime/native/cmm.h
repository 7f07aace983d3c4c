// The C interface of the conditional matrix multiplication kernels.
//
// Shapes are those of `fffconvert.runtime.reference.Weights`: T trees of depth D with N = 2^(D+1) - 1 nodes in
// heap order and 2^(D+1) leaves, B output rows per node, leaf blocks of L neurons. Rows are contiguous.
#pragma once
#include <cstdint>

extern "C" {

enum fff_type { FFF_FLOAT32 = 0, FFF_BFLOAT16 = 1, FFF_INT8 = 2 };

// The activations, by the numbers of `fffconvert.runtime.activations.ACTIVATIONS`. Exported files hold them, so a
// number is never given to another function.
enum fff_activation : int64_t {
    FFF_GELU = 0,
    FFF_GELU_TANH = 1,
    FFF_QUICK_GELU = 2,
    FFF_SILU = 3,
    FFF_RELU = 4,
    FFF_RELU2 = 5,
    FFF_LEAKY_RELU = 6,
    FFF_ELU = 7,
    FFF_SELU = 8,
    FFF_TANH = 9,
    FFF_SIGMOID = 10,
    FFF_SOFTPLUS = 11,
    FFF_MISH = 12,
    FFF_HARDSWISH = 13,
    FFF_IDENTITY = 14,
    FFF_ACTIVATIONS = 15,  // one more than the last
};

// Rows of one type; int8 rows have a scale each, others none.
struct fff_rows {
    const void* data;
    const float* scale;
};

struct fff_layer {
    int64_t trees, depth, branches, leaf_width, d_in, d_out;
    int64_t activation;  // fff_activation
    int64_t row_type;    // fff_type of all rows
    fff_rows in;         // [T, N, d_in]
    const float* in_bias;  // [T, N]
    fff_rows out;          // [T, B * N, d_out]
    fff_rows constant;     // [T, leaves, d_out], or null
    fff_rows leaf_in;      // [T, leaves, L, d_in], or null with L = 0
    const float* leaf_in_bias;  // [T, leaves, L]
    fff_rows leaf_gate;         // as leaf_in, or null for a plain block
    const float* leaf_gate_bias;
    fff_rows leaf_out;  // [T, leaves, L, d_out]
    const float* leaf_threshold;  // [T, leaves, L], or null: smaller activations count as 0
    const float* bias;  // [d_out], or null
};

struct fff_gradients {
    float* x;         // [tokens, d_in], written
    float* in;        // [T, N, d_in], zeros to add to; null, as are all below, if only that of x is asked for
    float* in_bias;   // [T, N], likewise
    float* out;       // [T, B * N, d_out], likewise
    float* constant;  // [T, leaves, d_out], likewise, or null
};

// x and y are float32 or bfloat16 (`io_type`); `x_stride` counts elements between tokens, y is dense.
// logits [tokens, T, D + 1] and leaf [tokens, T] are written where not null.
typedef void fff_forward_fn(const fff_layer* layer, const void* x, int64_t x_stride, int64_t tokens, void* y,
                            int64_t io_type, float* logits, int64_t* leaf, int64_t threads);

// Gradients along the paths taken, of float32 rows without leaf blocks. All inputs are dense.
typedef void fff_backward_fn(const fff_layer* layer, const float* grad_y, const float* grad_logits,
                             const float* x, int64_t tokens, const float* logits, const int64_t* leaf,
                             const fff_gradients* gradients, int64_t threads);

#define FFF_API __attribute__((visibility("default")))

FFF_API fff_forward_fn fff_forward;
FFF_API fff_backward_fn fff_backward;

// Instruction sets in this library that the processor has, best first, separated by blanks.
FFF_API const char* fff_instruction_sets();
// Use one of them from now on; returns 0, or -1 if it is not among them.
FFF_API int fff_use_instruction_set(const char* name);
FFF_API const char* fff_instruction_set();
// Hand over GOMP_parallel of the OpenMP runtime that torch uses; null for threads of our own.
FFF_API void fff_set_gomp_parallel(void* function);
}
