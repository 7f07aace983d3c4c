// The activations and their derivatives.
#pragma once
#include <cmath>

#include "cmm.h"
#include "vec.h"

namespace {

constexpr float SELU_SCALE = 1.0507009873554805f, SELU_ALPHA = 1.6732632423543772f;
constexpr float TANH_SCALE = 0.7978845608028654f, TANH_CUBIC = 0.044715f;  // of GELU's tanh form
constexpr float QUICK_SLOPE = 1.702f;

inline vf sigmoid(vf x) { return 1.f / (1.f + exp(-x)); }

inline vf tanh(vf x) {
    vf size = select(x < 0.f, -x, x), square = x * x;
    // Near 0 the quotient loses digits to cancellation; an odd polynomial does not.
    vf near = x + x * square * (-0.33333334f + square * (0.13333334f - square * 0.053968254f));
    vf far = 1.f - 2.f / (exp(size + size) + 1.f);
    return select(size < 0.1f, near, select(x < 0.f, -far, far));
}

// The normal distribution function, by a rational fit of erfc with a relative error of 1.2e-7.
// Reference: Press et al., Numerical Recipes in C, 2nd edition, section 6.2.
inline vf normal_cdf(vf x) {
    vf z = select(x < 0.f, -x, x) * 0.70710678f;
    vf t = 1.f / (1.f + 0.5f * z);
    vf p = t * 0.17087277f - 0.82215223f;
    p = p * t + 1.48851587f;
    p = p * t - 1.13520398f;
    p = p * t + 0.27886807f;
    p = p * t - 0.18628806f;
    p = p * t + 0.09678418f;
    p = p * t + 0.37409196f;
    p = p * t + 1.00002368f;
    p = p * t - 1.26551223f;
    vf tail = 0.5f * t * exp(p - z * z);
    return select(x > 0.f, 1.f - tail, tail);
}

inline vf gelu_tanh_inner(vf x) { return tanh(TANH_SCALE * (x + TANH_CUBIC * x * x * x)); }

inline vf softplus(vf x) {
    float lanes[W];
    store(lanes, x);
    for (float& v : lanes) v = v > 20.f ? v : std::log1p(std::exp(v));
    return load(lanes);
}

// tanh(softplus(x)), from e^x alone.
inline vf tanh_softplus(vf x) {
    vf e = exp(select(x > 20.f, splat(20.f), x));
    vf n = e * (e + 2.f);
    return n / (n + 2.f);
}

inline vf activate(int64_t kind, vf x) {
    switch (kind) {
        case FFF_GELU: return x * normal_cdf(x);
        case FFF_GELU_TANH: return 0.5f * x * (1.f + gelu_tanh_inner(x));
        case FFF_QUICK_GELU: return x * sigmoid(QUICK_SLOPE * x);
        case FFF_SILU: return x * sigmoid(x);
        case FFF_RELU: return select(x < 0.f, splat(0.f), x);
        case FFF_RELU2: return select(x < 0.f, splat(0.f), x * x);
        case FFF_LEAKY_RELU: return select(x > 0.f, x, 0.01f * x);
        case FFF_ELU: return select(x > 0.f, x, exp(x) - 1.f);
        case FFF_SELU: return SELU_SCALE * select(x > 0.f, x, SELU_ALPHA * (exp(x) - 1.f));
        case FFF_TANH: return tanh(x);
        case FFF_SIGMOID: return sigmoid(x);
        case FFF_SOFTPLUS: return softplus(x);
        case FFF_MISH: return x * tanh_softplus(x);
        case FFF_HARDSWISH: {
            vf ramp = x + 3.f;
            ramp = select(ramp < 0.f, splat(0.f), select(ramp > 6.f, splat(6.f), ramp));
            return x * ramp / 6.f;
        }
        default: return x;
    }
}

inline vf swish_derivative(vf x, float slope) {
    vf s = sigmoid(slope * x);
    return s * (1.f + slope * x * (1.f - s));
}

inline vf derivative(int64_t kind, vf x) {
    vf zero = splat(0.f), one = splat(1.f);
    switch (kind) {
        case FFF_GELU: return normal_cdf(x) + x * exp(-0.5f * x * x) * 0.3989422804f;
        case FFF_GELU_TANH: {
            vf t = gelu_tanh_inner(x);
            vf slope = TANH_SCALE * (1.f + 3.f * TANH_CUBIC * x * x);
            return 0.5f * (1.f + t) + 0.5f * x * (1.f - t * t) * slope;
        }
        case FFF_QUICK_GELU: return swish_derivative(x, QUICK_SLOPE);
        case FFF_SILU: return swish_derivative(x, 1.f);
        case FFF_RELU: return select(x > 0.f, one, zero);
        case FFF_RELU2: return select(x > 0.f, 2.f * x, zero);
        case FFF_LEAKY_RELU: return select(x > 0.f, one, splat(0.01f));
        case FFF_ELU: return select(x > 0.f, one, exp(x));
        case FFF_SELU: return SELU_SCALE * select(x > 0.f, one, SELU_ALPHA * exp(x));
        case FFF_TANH: {
            vf t = tanh(x);
            return 1.f - t * t;
        }
        case FFF_SIGMOID: {
            vf s = sigmoid(x);
            return s * (1.f - s);
        }
        case FFF_SOFTPLUS: return sigmoid(x);
        case FFF_MISH: {
            vf t = tanh_softplus(x);
            return t + x * sigmoid(x) * (1.f - t * t);
        }
        case FFF_HARDSWISH: {
            vf inside = x / 3.f + 0.5f;
            return select(x > -3.f, select(x < 3.f, inside, one), zero);
        }
        default: return one;
    }
}

// In place, over `count` numbers; the buffer is padded to whole vectors.
inline void activate(int64_t kind, float* values, int64_t count) {
    for (int64_t i = 0; i < count; i += W) store(values + i, activate(kind, load(values + i)));
}

}  // namespace
