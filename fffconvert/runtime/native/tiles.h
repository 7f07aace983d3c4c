// The two inner products everything is made of, for a few tokens and rows at a time, held in registers.
#pragma once
#include "vec.h"

namespace {

constexpr int TILE = 4;                      // tokens of a tile
// Registers hold an array only if every loop over it is unrolled.
#define UNROLLED _Pragma("GCC unroll 16")

constexpr int COLUMNS = VEC_BYTES == 64 ? 4 : 2;  // vectors of a row that a tile works on at a time

// s[m][n] = <x[m], w[n]> over d features.
template <int M, int N, class R>
inline void dots(const float* const* x, const R* const* w, int64_t d, float (*s)[N]) {
    constexpr int UNROLL = M * N >= 6 ? 1 : M * N >= 3 ? 2 : 4;  // independent sums hide the latency
    vf total[UNROLL][M][N] = {};
    int64_t i = 0;
    for (; i + UNROLL * W <= d; i += UNROLL * W)
        UNROLLED
        for (int u = 0; u < UNROLL; u++) {
            vf row[N];
            UNROLLED
            for (int n = 0; n < N; n++) row[n] = load(w[n] + i + u * W);
            UNROLLED
            for (int m = 0; m < M; m++) {
                vf token = in_register(load(x[m] + i + u * W));
                UNROLLED
                for (int n = 0; n < N; n++) total[u][m][n] += token * row[n];
            }
        }
    for (; i + W <= d; i += W)
        UNROLLED
        for (int m = 0; m < M; m++)
            UNROLLED
            for (int n = 0; n < N; n++) total[0][m][n] += load(x[m] + i) * load(w[n] + i);
    UNROLLED
    for (int m = 0; m < M; m++)
        UNROLLED
        for (int n = 0; n < N; n++) {
            UNROLLED
            for (int u = 1; u < UNROLL; u++) total[0][m][n] += total[u][m][n];
            float rest = 0;
            for (int64_t j = i; j < d; j++) rest += x[m][j] * scalar(w[n][j]);
            s[m][n] = sum(total[0][m][n]) + rest;
        }
}

// The same for `count` tokens, at most TILE.
template <int N, class R>
inline void dots(int64_t count, const float* const* x, const R* const* w, int64_t d, float (*s)[N]) {
    switch (count) {
        case 1: return dots<1, N>(x, w, d, s);
        case 2: return dots<2, N>(x, w, d, s);
        case 3: return dots<3, N>(x, w, d, s);
        default: return dots<4, N>(x, w, d, s);
    }
}

// s[m] = <x[m], w[m]>: each token of a tile with a row of its own.
template <class R>
inline void own_dots(const float* const* x, const R* const* w, int64_t d, float (*s)[1]) {
    vf total[TILE] = {};
    int64_t i = 0;
    for (; i + W <= d; i += W)
        UNROLLED
        for (int m = 0; m < TILE; m++) total[m] += load(x[m] + i) * load(w[m] + i);
    UNROLLED
    for (int m = 0; m < TILE; m++) {
        float rest = 0;
        for (int64_t j = i; j < d; j++) rest += x[m][j] * scalar(w[m][j]);
        s[m][0] = sum(total[m]) + rest;
    }
}

// Rows to add to the outputs of a tile, with a factor for each token: shared ones, then each token's own.
template <class R>
struct Terms {
    const R** shared;            // [shared_count]
    float (*shared_factor)[TILE];
    int64_t shared_count;
    const R* own[TILE][32];
    float own_factor[TILE][32];
    int64_t own_count;
};

template <int M, int C, class R>
inline void add_columns(const Terms<R>& terms, float* const* y, const float* const* start, int64_t i) {
    vf total[M][C];
    UNROLLED
    for (int m = 0; m < M; m++)
        UNROLLED
        for (int c = 0; c < C; c++) total[m][c] = start ? load(start[m] + i + c * W) : splat(0.f);
    for (int64_t j = 0; j < terms.shared_count; j++) {
        vf row[C];
        UNROLLED
        for (int c = 0; c < C; c++) row[c] = load(terms.shared[j] + i + c * W);
        UNROLLED
        for (int m = 0; m < M; m++) {
            vf factor = splat(terms.shared_factor[j][m]);
            UNROLLED
            for (int c = 0; c < C; c++) total[m][c] += factor * row[c];
        }
    }
    UNROLLED
    for (int m = 0; m < M; m++)
        for (int64_t j = 0; j < terms.own_count; j++) {
            vf factor = splat(terms.own_factor[m][j]);
            UNROLLED
            for (int c = 0; c < C; c++) total[m][c] += factor * load(terms.own[m][j] + i + c * W);
        }
    UNROLLED
    for (int m = 0; m < M; m++)
        UNROLLED
        for (int c = 0; c < C; c++) store(y[m] + i + c * W, total[m][c]);
}

// y[m] = start[m] + all terms, over d features; without `start` from 0.
template <int M, class R>
inline void add_rows(const Terms<R>& terms, float* const* y, const float* const* start, int64_t d) {
    int64_t i = 0;
    for (; i + COLUMNS * W <= d; i += COLUMNS * W) add_columns<M, COLUMNS>(terms, y, start, i);
    for (; i + W <= d; i += W) add_columns<M, 1>(terms, y, start, i);
    for (; i < d; i++)
        UNROLLED
        for (int m = 0; m < M; m++) {
            float total = start ? start[m][i] : 0.f;
            for (int64_t j = 0; j < terms.shared_count; j++)
                total += terms.shared_factor[j][m] * scalar(terms.shared[j][i]);
            for (int64_t j = 0; j < terms.own_count; j++)
                total += terms.own_factor[m][j] * scalar(terms.own[m][j][i]);
            y[m][i] = total;
        }
}

template <class R>
inline void add_rows(int64_t count, const Terms<R>& terms, float* const* y, const float* const* start,
                     int64_t d) {
    switch (count) {
        case 1: return add_rows<1>(terms, y, start, d);
        case 2: return add_rows<2>(terms, y, start, d);
        case 3: return add_rows<3>(terms, y, start, d);
        default: return add_rows<4>(terms, y, start, d);
    }
}

}  // namespace
