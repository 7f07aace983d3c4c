// Walking down one tree with many tokens at once, and adding up what they met.
#pragma once
#include "activations.h"
#include "cmm.h"
#include "support.h"
#include "tiles.h"
#include <cmath>

namespace {

using fff::Purpose;

template <class T>
T* scratch(Purpose purpose, int64_t count) {
    return static_cast<T*>(fff::scratch(purpose, size_t(count) * sizeof(T)));
}

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <class F>
void in_parallel(int64_t parts, F f) {
    fff::parallel(parts, [](void* data, int64_t part) { (*static_cast<F*>(data))(part); }, &f);
}

// Rows of type R, with their scales where R is int8.
template <class R>
struct Rows {
    const R* data;
    const float* scale;

    Rows(const fff_rows& rows, int64_t first, int64_t d)
        : data(static_cast<const R*>(rows.data) + first * d), scale(rows.scale ? rows.scale + first : nullptr) {}
    float scaled(int64_t row, float value) const { return scale ? value * scale[row] : value; }
};

// One tree of a layer.
template <class R>
struct Tree {
    int64_t index, depth, levels, nodes, leaves, branches, d_in, d_out;
    Rows<R> in, out, constant;
    const float* in_bias;

    Tree(const fff_layer& layer, int64_t t)
        : index(t),
          depth(layer.depth),
          levels(depth + 1),
          nodes((int64_t(2) << depth) - 1),
          leaves(nodes + 1),
          branches(layer.branches),
          d_in(layer.d_in),
          d_out(layer.d_out),
          in(layer.in, t * nodes, d_in),
          out(layer.out, t * nodes * branches, d_out),
          constant(layer.constant, layer.constant.data ? t * leaves : 0, d_out),
          in_bias(layer.in_bias + t * nodes) {}

    // The node of a level on the way to a leaf, and the output row that it adds there.
    int64_t node(int64_t level, int64_t leaf) const { return ((leaf + leaves) >> (levels - level)) - 1; }
    int64_t out_row(int64_t level, int64_t leaf) const {
        int64_t n = node(level, leaf);
        return branches == 2 ? 2 * n + (leaf >> (depth - level) & 1) : n;
    }
};

// A token at a node; sorted by node, the tokens of a node stand together.
struct Item {
    int32_t token;
    int32_t node;
};

// The tokens that a thread works on together, few enough for its cache.
struct Block {
    static constexpr int64_t SIZE = 256;
    static constexpr int64_t SORTED_SIZE = 64;  // sorted tokens share most rows already: better nearer to the core
    int64_t count;
    const float* x[SIZE];
    float* scores[SIZE];  // of one tree: [levels]
    float* y[SIZE];
};

// Start to bring a row into the cache.
template <class R>
void fetch(const R* row, int64_t d) {
    for (int64_t i = 0; i < d; i += 64 / int64_t(sizeof(R))) __builtin_prefetch(row + i);
}

// Go one level down where hardly two tokens share a node: tile by tile, with no decision that the processor could
// guess wrong. The items stay sorted as far as they were.
template <class R>
void descend_apart(const Tree<R>& tree, const Block& block, Item* items, int64_t level) {
    const int64_t d = tree.d_in;
    for (int64_t i = 0; i < block.count; i += TILE) {
        const int64_t count = least(TILE, block.count - i);
        const float* x[TILE];
        const R* rows[TILE];
        for (int64_t m = 0; m < count; m++) {
            x[m] = block.x[items[i + m].token];
            rows[m] = tree.in.data + items[i + m].node * d;
        }
        float s[TILE][1];
        if (count == TILE) own_dots(x, rows, d, s);
        else
            for (int64_t m = 0; m < count; m++) dots<1, 1>(x + m, rows + m, d, s + m);
        for (int64_t m = 0; m < count; m++) {
            Item& item = items[i + m];
            const float score = tree.in.scaled(item.node, s[m][0]) + tree.in_bias[item.node];
            block.scores[item.token][level] = score;
            const int64_t right = score > 0;
            // Few tokens wait for memory at every level; their output rows can come meanwhile.
            if (block.count < TILE)
                fetch(tree.out.data + (tree.branches == 2 ? 2 * item.node + right : item.node) * tree.d_out, tree.d_out);
            item.node = int32_t(2 * item.node + 1 + right);
        }
    }
}

// Fewer tokens per node than this are better taken apart.
constexpr int64_t APART = 5;

// Send the items down from level `from` to level `to`; they stay (nearly) sorted by node. Writes the scores.
template <class R>
void descend(const Tree<R>& tree, const Block& block, Item* items, Item* spare, int64_t from, int64_t to) {
    const int64_t d = tree.d_in;
    auto score = [&](int64_t node, float product) {
        return tree.in.scaled(node, product) + tree.in_bias[node];
    };
    for (int64_t level = from; level < to;) {
        int64_t groups = 1;
        for (int64_t i = 1; i < block.count; i++) groups += items[i].node != items[i - 1].node;
        if (block.count < APART * groups) {
            descend_apart(tree, block, items, level++);
            continue;
        }
        // Where many tokens share a node, both its children are multiplied as well: reading a token once more
        // costs more than a product that half of the tokens do not need.
        const bool pair = level + 1 < to && block.count >= 6 * groups;
        Item* write = items;
        for (int64_t first = 0, last; first < block.count; first = last) {
            const int64_t node = items[first].node;
            for (last = first + 1; last < block.count && items[last].node == node;) last++;
            const R* rows[3] = {tree.in.data + node * d, nullptr, nullptr};
            for (int c = 1; pair && c < 3; c++) rows[c] = tree.in.data + (2 * node + c) * d;
            int64_t starts[5] = {};  // how many tokens go before each of the 4 (or 2) children
            for (int64_t i = first; i < last; i += TILE) {
                const int64_t count = least(TILE, last - i);
                const float* x[TILE];
                for (int64_t m = 0; m < count; m++) x[m] = block.x[items[i + m].token];
                float one[TILE][1], three[TILE][3];
                pair ? dots<3>(count, x, rows, d, three) : dots<1>(count, x, rows, d, one);
                for (int64_t m = 0; m < count; m++) {
                    const int32_t token = items[i + m].token;
                    float* scores = block.scores[token];
                    const float s = scores[level] = score(node, pair ? three[m][0] : one[m][0]);
                    int64_t child = s > 0;
                    if (pair) {
                        const int64_t below = 2 * node + 1 + child;
                        const float s2 = scores[level + 1] = score(below, three[m][1 + child]);
                        child = 2 * child + (s2 > 0);
                    }
                    spare[i + m] = {token, int32_t(child)};
                    starts[child + 1]++;
                }
            }
            const int64_t leftmost = pair ? 4 * node + 3 : 2 * node + 1;
            for (int c = 1; c < 4; c++) starts[c + 1] += starts[c];
            for (int64_t i = first; i < last; i++) {
                const int32_t child = spare[i].node;
                write[first + starts[child]++] = {spare[i].token, int32_t(leftmost + child)};
            }
        }
        level += pair ? 2 : 1;
    }
}

// The activations of a block's scores: [count, padded levels]. All are copied before the first is used: reading
// back at once what was written in smaller pieces stalls the processor.
inline const float* activations(const fff_layer& layer, const Block& block, const Item* items, int64_t levels,
                                int64_t padded) {
    float* values = scratch<float>(Purpose::values, Block::SIZE * padded);
    for (int64_t i = 0; i < block.count; i++) {
        const float* scores = block.scores[items[i].token];
        for (int64_t k = 0; k < levels; k++) values[i * padded + k] = scores[k];
        for (int64_t k = levels; k < padded; k++) values[i * padded + k] = 0;
    }
    activate(layer.activation, values, block.count * padded);
    return values;
}

// Add the path rows, the constant and the leaf block's rows of the items' leaves to y (or set y, if `first`).
//
// hidden: [items, leaf_width], the leaf blocks' neurons after the activation, or null.
template <class R>
void add_outputs(const fff_layer& layer, const Tree<R>& tree, const Block& block, const Item* items,
                 const float* hidden, bool first) {
    const int64_t width = hidden ? layer.leaf_width : 0;
    const int64_t levels = tree.levels, padded = (levels + W - 1) / W * W;
    const float* values = activations(layer, block, items, levels, padded);
    Terms<R> terms;
    terms.shared = scratch<const R*>(Purpose::terms, levels + 1 + width);
    terms.shared_factor = scratch<float[TILE]>(Purpose::factors, levels + 1 + width);
    for (int64_t i = 0, count; i < block.count; i += count) {
        const int64_t leaf = items[i].node - tree.nodes;
        count = least(TILE, block.count - i);
        // A leaf block is shared by all of a tile, so a tile ends where the leaf does.
        for (int64_t m = 1; width && m < count; m++)
            if (items[i + m].node != items[i].node) count = m;
        int64_t differ = 0;  // bits of the leaves in which the tile's tokens are not all alike
        for (int64_t m = 1; m < count; m++) differ |= leaf ^ (items[i + m].node - tree.nodes);
        float* y[TILE];
        const float* start[TILE];
        for (int64_t m = 0; m < count; m++) {
            y[m] = block.y[items[i + m].token];
            start[m] = first ? layer.bias : y[m];
        }
        terms.shared_count = terms.own_count = 0;
        auto add = [&](const Rows<R>& rows, int64_t shift, auto row_of, auto factor_of) {
            if (!(differ >> shift)) {
                const int64_t row = row_of(leaf);
                const int64_t j = terms.shared_count++;
                terms.shared[j] = rows.data + row * tree.d_out;
                for (int64_t m = 0; m < count; m++) terms.shared_factor[j][m] = rows.scaled(row, factor_of(m));
            } else {
                const int64_t j = terms.own_count++;
                for (int64_t m = 0; m < count; m++) {
                    const int64_t own = row_of(items[i + m].node - tree.nodes);
                    terms.own[m][j] = rows.data + own * tree.d_out;
                    terms.own_factor[m][j] = rows.scaled(own, factor_of(m));
                }
            }
        };
        for (int64_t k = 0; k < levels; k++)
            add(tree.out, tree.branches == 2 ? tree.depth - k : levels - k, [&](int64_t l) { return tree.out_row(k, l); }, [&](int64_t m) { return values[(i + m) * padded + k]; });
        if (layer.constant.data) add(tree.constant, 0, [](int64_t l) { return l; }, [](int64_t) { return 1.f; });
        if (width) {
            const Rows<R> rows(layer.leaf_out, (tree.index * tree.leaves + leaf) * width, tree.d_out);
            for (int64_t j = 0; j < width; j++) {
                bool any = !layer.leaf_threshold;
                for (int64_t m = 0; !any && m < count; m++) any = hidden[(i + m) * width + j] != 0;
                if (any) add(rows, 0, [j](int64_t) { return j; }, [&](int64_t m) { return hidden[(i + m) * width + j]; });
            }
        }
        add_rows(count, terms, y, first && !layer.bias ? nullptr : start, tree.d_out);
    }
}

// One projection of the leaf blocks, before the activation: h [items, leaf_width].
template <class R>
void project_leaves(const fff_layer& layer, const Tree<R>& tree, const Block& block, const Item* items,
                    const fff_rows& weight, const float* bias, float* h) {
    constexpr int N = 4;
    const int64_t width = layer.leaf_width, d = tree.d_in;
    for (int64_t first = 0, last; first < block.count; first = last) {
        const int64_t node = items[first].node;
        for (last = first + 1; last < block.count && items[last].node == node;) last++;
        const int64_t start = (tree.index * tree.leaves + node - tree.nodes) * width;
        const Rows<R> rows(weight, start, d);
        for (int64_t j = 0; j < width; j += N)
            for (int64_t i = first; i < last; i += TILE) {
                const int64_t count = least(TILE, last - i), wide = least(N, width - j);
                const float* x[TILE];
                for (int64_t m = 0; m < count; m++) x[m] = block.x[items[i + m].token];
                const R* w[N];
                for (int64_t n = 0; n < N; n++) w[n] = rows.data + (j + least(n, wide - 1)) * d;
                float s[TILE][N];
                dots<N>(count, x, w, d, s);
                for (int64_t m = 0; m < count; m++)
                    for (int64_t n = 0; n < wide; n++)
                        h[(i + m) * width + j + n] = rows.scaled(j + n, s[m][n]) + bias[start + j + n];
            }
    }
}

// Set activations up to their neurons' thresholds to 0; NaN stays.
template <class R>
void skip_small(const fff_layer& layer, const Tree<R>& tree, const Block& block, const Item* items, float* up) {
    const int64_t width = layer.leaf_width;
    for (int64_t i = 0; i < block.count; i++) {
        const float* threshold = layer.leaf_threshold + (tree.index * tree.leaves + items[i].node - tree.nodes) * width;
        float* own = up + i * width;
        for (int64_t j = 0; j < width; j++) own[j] = std::fabs(own[j]) <= threshold[j] ? 0.f : own[j];
    }
}

// Multiply the activations that are not 0 by their gates, token by token, reading those gates' rows alone. Many
// tokens together need nearly all of the rows, which are then better read once for all.
template <class R>
void gate_kept(const fff_layer& layer, const Tree<R>& tree, const Block& block, const Item* items, float* up) {
    constexpr int N = 4;
    const int64_t width = layer.leaf_width, d = tree.d_in;
    for (int64_t i = 0; i < block.count; i++) {
        const int64_t start = (tree.index * tree.leaves + items[i].node - tree.nodes) * width;
        const Rows<R> rows(layer.leaf_gate, start, d);
        const float* x[1] = {block.x[items[i].token]};
        float* own = up + i * width;
        int64_t kept[N], count = 0;
        auto gate = [&] {
            const R* w[N];
            for (int64_t n = 0; n < N; n++) w[n] = rows.data + kept[least(n, count - 1)] * d;
            float s[1][N];
            dots<1, N>(x, w, d, s);
            for (int64_t n = 0; n < count; n++)
                own[kept[n]] *= rows.scaled(kept[n], s[0][n]) + layer.leaf_gate_bias[start + kept[n]];
            count = 0;
        };
        for (int64_t j = 0; j < width; j++) {
            if (own[j] != 0) kept[count++] = j;
            if (count == N) gate();
        }
        if (count) gate();
    }
}

// The leaf blocks' neurons after activation and gate: [items, leaf_width]; null without leaf blocks.
template <class R>
const float* leaf_hidden(const fff_layer& layer, const Tree<R>& tree, const Block& block, const Item* items) {
    if (!layer.leaf_width) return nullptr;
    const int64_t count = block.count * layer.leaf_width, padded = count + W;
    float* up = scratch<float>(Purpose::hidden, 2 * padded);
    project_leaves(layer, tree, block, items, layer.leaf_in, layer.leaf_in_bias, up);
    for (int64_t i = count; i < padded; i++) up[i] = 0;
    activate(layer.activation, up, count);
    if (layer.leaf_threshold) skip_small(layer, tree, block, items, up);
    if (!layer.leaf_gate.data) return up;
    if (layer.leaf_threshold && block.count < TILE) {
        gate_kept(layer, tree, block, items, up);
        return up;
    }
    float* gate = up + padded;
    project_leaves(layer, tree, block, items, layer.leaf_gate, layer.leaf_gate_bias, gate);
    for (int64_t i = 0; i < count; i++) up[i] *= gate[i];
    return up;
}

}  // namespace
