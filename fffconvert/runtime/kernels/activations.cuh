// The activations, by their numbers in `ACTIVATIONS` in Python.

enum {
  GELU = 0,
  GELU_TANH = 1,
  QUICK_GELU = 2,
  SILU = 3,
  RELU = 4,
  RELU2 = 5,
  LEAKY_RELU = 6,
  ELU = 7,
  SELU = 8,
  TANH = 9,
  SIGMOID = 10,
  SOFTPLUS = 11,
  MISH = 12,
  HARDSWISH = 13,
  IDENTITY = 14,
};

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ __forceinline__ float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

// NaN stays NaN, as in torch; fmaxf would hide it.
__device__ __forceinline__ float relu(float x) { return x < 0.0f ? 0.0f : x; }

__device__ __forceinline__ float activate(index_t kind, float x) {
  switch (kind) {
    case GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case QUICK_GELU: return x * sigmoid(1.702f * x);
    case SILU: return x * sigmoid(x);
    case RELU: return relu(x);
    case RELU2: return relu(x) * relu(x);
    case LEAKY_RELU: return x > 0.0f ? x : 0.01f * x;
    case ELU: return x > 0.0f ? x : expm1f(x);
    case SELU: return 1.0507010f * (x > 0.0f ? x : 1.6732632f * expm1f(x));
    case TANH: return tanhf(x);
    case SIGMOID: return sigmoid(x);
    case SOFTPLUS: return softplus(x);
    case MISH: return x * tanhf(softplus(x));
    case HARDSWISH: return x * (relu(x + 3.0f) > 6.0f ? 6.0f : relu(x + 3.0f)) / 6.0f;
    default: return x;
  }
}
