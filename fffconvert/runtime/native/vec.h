// Vectors of VEC_BYTES bytes by the compiler's vector extension: one source for every instruction set, chosen by
// compiler flags alone.
#pragma once
#include <cstdint>
#include <cstring>
#if VEC_BYTES > 16
#if defined(__GNUC__) && !defined(__clang__)
// GCC warns of values that its own AVX-512 header leaves undefined on purpose (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif
#endif

namespace {

constexpr int W = VEC_BYTES / 4;  // float32 lanes
typedef float vf __attribute__((vector_size(VEC_BYTES)));
typedef int32_t vi __attribute__((vector_size(VEC_BYTES)));
typedef uint16_t vu16 __attribute__((vector_size(VEC_BYTES / 2)));
typedef int8_t vi8 __attribute__((vector_size(VEC_BYTES / 4)));

struct bf16 {
    uint16_t bits;
};

inline vf splat(float value) { return value - vf{}; }
inline vf as_float(vi bits) { return (vf)bits; }  // the same bits
inline vi as_int(vf value) { return (vi)value; }
inline vf select(vi mask, vf yes, vf no) { return mask ? yes : no; }

template <class V, class T>
inline V load_raw(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline vf load(const float* p) { return load_raw<vf>(p); }
// GCC 12 turns the generic conversions below into a dozen shuffles, so x86 spells them out.
#if VEC_BYTES == 64
inline vf load(const bf16* p) {
    return as_float((vi)_mm512_cvtepu16_epi32((__m256i)load_raw<vu16>(p)) << 16);
}
inline vf load(const int8_t* p) { return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)load_raw<vi8>(p))); }
#elif VEC_BYTES == 32
inline vf load(const bf16* p) {
    return as_float((vi)_mm256_cvtepu16_epi32((__m128i)load_raw<vu16>(p)) << 16);
}
inline vf load(const int8_t* p) {
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
#else
inline vf load(const bf16* p) {
    return as_float(__builtin_convertvector(load_raw<vu16>(p), vi) << 16);
}
inline vf load(const int8_t* p) {
    return __builtin_convertvector(__builtin_convertvector(load_raw<vi8>(p), vi), vf);
}
#endif
inline float scalar(float v) { return v; }
inline float scalar(int8_t v) { return v; }
inline float scalar(bf16 v) {
    uint32_t bits = uint32_t(v.bits) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

// Keep a value in a register: the compiler would rather read memory again for every use.
inline vf in_register(vf v) {
#if VEC_BYTES == 64
    asm("" : "+v"(v));
#elif defined(__x86_64__)
    asm("" : "+x"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#endif
    return v;
}

inline void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }
inline uint16_t round_to_bf16(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    if (f != f) return uint16_t(bits >> 16 | 0x40);  // stays NaN
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void store(bf16* p, vf v) {
    vi bits = as_int(v);
    vi rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    rounded = (v == v) ? rounded : (bits >> 16 | 0x40);
    vu16 half = __builtin_convertvector(rounded, vu16);
    std::memcpy(p, &half, sizeof half);
}
inline void store_scalar(float* p, float v) { *p = v; }
inline void store_scalar(bf16* p, float v) { p->bits = round_to_bf16(v); }

inline float sum(vf v) {
    typedef float quarter __attribute__((vector_size(16)));
#if VEC_BYTES == 64
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#elif VEC_BYTES == 32
    __m256 half = (__m256)v;
#endif
#if VEC_BYTES >= 32
    quarter q = (quarter)_mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#else
    quarter q = v;
#endif
    q += __builtin_shuffle(q, (int __attribute__((vector_size(16)))){2, 3, 0, 1});
    return q[0] + q[1];
}

// e^x to two units in the last place; NaN stays NaN.
inline vf exp(vf x) {
    vf t = select(x < -87.f, splat(-87.f), x);
    t = select(t > 88.f, splat(88.f), t);
    const vf magic = splat(12582912.f);  // adding it rounds to an integer
    vf n = t * 1.44269504f + magic - magic;
    vf r = t - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    vi power = (__builtin_convertvector(n, vi) + 127) << 23;
    return select(x == x, select(x < -87.f, splat(0.f), p * as_float(power)), x);
}

}  // namespace
