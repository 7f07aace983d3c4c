// The backward pass: only visited rows receive a gradient. Tokens are sorted by leaf, so that those of a node
// stand together at every level and are summed in one fixed order, whatever the number of threads.
#pragma once
#include "trees.h"

namespace {

// row += sum of factor[i] * x[i], in columns [from, to).
inline void accumulate(float* row, int64_t count, const float* const* x, const float* factor, int64_t from,
                       int64_t to) {
    int64_t i = from;
    for (; i + COLUMNS * W <= to; i += COLUMNS * W) {
        vf total[COLUMNS];
        for (int c = 0; c < COLUMNS; c++) total[c] = load(row + i + c * W);
        for (int64_t t = 0; t < count; t++) {
            vf f = splat(factor[t]);
            for (int c = 0; c < COLUMNS; c++) total[c] += f * load(x[t] + i + c * W);
        }
        for (int c = 0; c < COLUMNS; c++) store(row + i + c * W, total[c]);
    }
    for (; i < to; i++)
        for (int64_t t = 0; t < count; t++) row[i] += factor[t] * x[t][i];
}

struct BackwardCall {
    const fff_layer& layer;
    const float *grad_y, *grad_logits, *x;
    int64_t tokens;
    const float* logits;
    const int64_t* leaf;
    const fff_gradients& gradients;
};

// What the gradients of one tree are made of, for the tokens sorted by leaf.
struct Sorted {
    const int32_t* token;  // [tokens]
    const int32_t* leaf;   // [tokens]
    float* value;          // [levels, tokens]: activations
    float* grad;           // [levels, tokens]: gradients of the logits
};

inline int64_t end_of_run(const int32_t* leaf, int64_t first, int64_t end, int shift) {
    int64_t last = first + 1;
    while (last < end && leaf[last] >> shift == leaf[first] >> shift) last++;
    return last;
}

// The gradients of logits and x for the sorted tokens [start, end), at most a block.
inline void backward_tokens(const BackwardCall& call, const Tree<float>& tree, const Sorted& sorted,
                            int64_t start, int64_t end) {
    const int64_t levels = tree.levels, n = call.tokens, kind = call.layer.activation;
    const float* grad_y[Block::SIZE];
    for (int64_t i = start; i < end; i++) grad_y[i - start] = call.grad_y + sorted.token[i] * tree.d_out;
    alignas(VEC_BYTES) float s[Block::SIZE + W] = {}, grad_a[Block::SIZE + W] = {};
    for (int64_t k = 0; k < levels; k++) {
        const int shift = int(tree.branches == 2 ? tree.depth - k : levels - k);
        for (int64_t first = start, last; first < end; first = last) {
            last = end_of_run(sorted.leaf, first, end, shift);
            const float* row = tree.out.data + tree.out_row(k, sorted.leaf[first]) * tree.d_out;
            for (int64_t i = first; i < last; i += TILE) {
                const int64_t count = least(TILE, last - i);
                float product[TILE][1];
                dots<1>(count, grad_y + (i - start), &row, tree.d_out, product);
                for (int64_t m = 0; m < count; m++) grad_a[i - start + m] = product[m][0];
            }
        }
        auto place = [&](int64_t i) { return (sorted.token[i] * call.layer.trees + tree.index) * levels + k; };
        for (int64_t i = start; i < end; i++) s[i - start] = call.logits[place(i)];
        for (int64_t i = 0; i < end - start; i += W) {
            vf logit = load(s + i);
            store(grad_a + i, load(grad_a + i) * derivative(kind, logit));
            store(s + i, activate(kind, logit));
        }
        for (int64_t i = start; i < end; i++) {
            sorted.value[k * n + i] = s[i - start];
            sorted.grad[k * n + i] = grad_a[i - start] + call.grad_logits[place(i)];
        }
    }
    Terms<float> terms;
    terms.shared = scratch<const float*>(Purpose::terms, levels);
    terms.shared_factor = scratch<float[TILE]>(Purpose::factors, levels);
    for (int64_t i = start; i < end; i += TILE) {
        const int64_t count = least(TILE, end - i);
        float* y[TILE];
        for (int64_t m = 0; m < count; m++) y[m] = call.gradients.x + sorted.token[i + m] * tree.d_in;
        terms.shared_count = terms.own_count = 0;
        for (int64_t k = 0; k < levels; k++) {
            const int64_t node = tree.node(k, sorted.leaf[i]);
            const float* factor = sorted.grad + k * n + i;
            if (node == tree.node(k, sorted.leaf[i + count - 1])) {
                const int64_t j = terms.shared_count++;
                terms.shared[j] = tree.in.data + node * tree.d_in;
                for (int64_t m = 0; m < count; m++) terms.shared_factor[j][m] = factor[m];
            } else {
                const int64_t j = terms.own_count++;
                for (int64_t m = 0; m < count; m++) {
                    terms.own[m][j] = tree.in.data + tree.node(k, sorted.leaf[i + m]) * tree.d_in;
                    terms.own_factor[m][j] = factor[m];
                }
            }
        }
        add_rows(count, terms, y, tree.index ? y : nullptr, tree.d_in);
    }
}

// Columns of part `part` of `parts`, in whole cache lines.
inline void columns(int64_t d, int64_t part, int64_t parts, int64_t& from, int64_t& to) {
    const int64_t lines = (d + 15) / 16;
    from = lines * part / parts * 16;
    to = least(d, lines * (part + 1) / parts * 16);
}

// The gradients of one tree's rows, in the columns of one part.
inline void backward_rows(const BackwardCall& call, const Tree<float>& tree, const Sorted& sorted, int64_t part,
                          int64_t parts) {
    const int64_t n = call.tokens, levels = tree.levels;
    int64_t in_from, in_to, out_from, out_to;
    columns(tree.d_in, part, parts, in_from, in_to);
    columns(tree.d_out, part, parts, out_from, out_to);
    const fff_gradients& to = call.gradients;
    float* in = to.in + tree.index * tree.nodes * tree.d_in;
    float* in_bias = to.in_bias + tree.index * tree.nodes;
    float* out = to.out + tree.index * tree.nodes * tree.branches * tree.d_out;
    float* constant = to.constant ? to.constant + tree.index * tree.leaves * tree.d_out : nullptr;
    const float *x[Block::SIZE], *grad_y[Block::SIZE];
    float ones[Block::SIZE];
    for (float& one : ones) one = 1;
    for (int64_t start = 0; start < n; start += Block::SIZE) {
        const int64_t end = least(n, start + Block::SIZE);
        for (int64_t i = start; i < end; i++) {
            x[i - start] = call.x + sorted.token[i] * tree.d_in;
            grad_y[i - start] = call.grad_y + sorted.token[i] * tree.d_out;
        }
        for (int64_t k = 0; k < levels; k++) {
            const float *grad = sorted.grad + k * n, *value = sorted.value + k * n;
            for (int64_t first = start, last; first < end; first = last) {
                last = end_of_run(sorted.leaf, first, end, int(levels - k));
                const int64_t node = tree.node(k, sorted.leaf[first]);
                accumulate(in + node * tree.d_in, last - first, x + (first - start), grad + first, in_from, in_to);
                for (int64_t i = first; part == 0 && i < last; i++) in_bias[node] += grad[i];
            }
            const int shift = int(tree.branches == 2 ? tree.depth - k : levels - k);
            for (int64_t first = start, last; first < end; first = last) {
                last = end_of_run(sorted.leaf, first, end, shift);
                accumulate(out + tree.out_row(k, sorted.leaf[first]) * tree.d_out, last - first,
                           grad_y + (first - start), value + first, out_from, out_to);
            }
        }
        for (int64_t first = start, last; constant && first < end; first = last) {
            last = end_of_run(sorted.leaf, first, end, 0);
            accumulate(constant + sorted.leaf[first] * tree.d_out, last - first, grad_y + (first - start), ones,
                       out_from, out_to);
        }
    }
}

inline void backward(const BackwardCall& call, int64_t threads) {
    const int64_t n = call.tokens, trees = call.layer.trees;
    const int64_t parts = least(threads, (n + 15) / 16);
    for (int64_t t = 0; t < trees; t++) {
        const Tree<float> tree(call.layer, t);
        int32_t* token = scratch<int32_t>(Purpose::order, n);
        int32_t* leaf = scratch<int32_t>(Purpose::sorted, n);
        int64_t* place = scratch<int64_t>(Purpose::counts, tree.leaves + 1);
        for (int64_t i = 0; i <= tree.leaves; i++) place[i] = 0;
        for (int64_t i = 0; i < n; i++) place[call.leaf[i * trees + t] + 1]++;
        for (int64_t i = 0; i < tree.leaves; i++) place[i + 1] += place[i];
        for (int64_t i = 0; i < n; i++) {
            const int64_t at = place[call.leaf[i * trees + t]]++;
            token[at] = int32_t(i);
            leaf[at] = int32_t(call.leaf[i * trees + t]);
        }
        float* values = scratch<float>(Purpose::scores, 2 * tree.levels * n);
        const Sorted sorted{token, leaf, values, values + tree.levels * n};
        in_parallel(parts, [&](int64_t part) {
            const int64_t end = n * (part + 1) / parts;
            for (int64_t start = n * part / parts; start < end; start += Block::SIZE)
                backward_tokens(call, tree, sorted, start, least(end, start + Block::SIZE));
        });
        if (call.gradients.in)
            in_parallel(parts, [&](int64_t part) { backward_rows(call, tree, sorted, part, parts); });
    }
}

}  // namespace
