// The forward pass: whole blocks of tokens for several trees, or one tree after another over sorted tokens.
#pragma once
#include "trees.h"

namespace {

// Where the arguments of a call lie.
struct Call {
    const fff_layer& layer;
    const void* x;
    int64_t x_stride, tokens;
    void* y;
    int64_t io_type;
    float* scores;  // [tokens, score_stride]
    int64_t score_stride;
    int64_t* leaf;
    bool first;  // y is to be written, not added to
};

// Fill a block with tokens; bfloat16 ones are converted.
inline void gather(const Call& call, int64_t t, const int32_t* tokens, int64_t count, Block& block) {
    const int64_t d_in = call.layer.d_in, d_out = call.layer.d_out, levels = call.layer.depth + 1;
    const bool wide = call.io_type == FFF_FLOAT32;
    float* x = wide ? nullptr : scratch<float>(Purpose::block_x, Block::SIZE * d_in);
    float* y = wide ? nullptr : scratch<float>(Purpose::block_y, Block::SIZE * d_out);
    block.count = count;
    for (int64_t i = 0; i < count; i++) {
        const int64_t token = tokens[i];
        block.scores[i] = call.scores + token * call.score_stride + (call.score_stride > levels ? t * levels : 0);
        if (wide) {
            block.x[i] = static_cast<const float*>(call.x) + token * call.x_stride;
            block.y[i] = static_cast<float*>(call.y) + token * d_out;
            continue;
        }
        const bf16* from = static_cast<const bf16*>(call.x) + token * call.x_stride;
        float* to = x + i * d_in;
        int64_t j = 0;
        for (; j + W <= d_in; j += W) store(to + j, load(from + j));
        for (; j < d_in; j++) to[j] = scalar(from[j]);
        block.x[i] = to;
        block.y[i] = y + i * d_out;
    }
}

// Round a block's outputs to bfloat16.
inline void scatter(const Call& call, const int32_t* tokens, const Block& block) {
    if (call.io_type == FFF_FLOAT32) return;
    const int64_t d = call.layer.d_out;
    for (int64_t i = 0; i < block.count; i++) {
        bf16* to = static_cast<bf16*>(call.y) + tokens[i] * d;
        int64_t j = 0;
        for (; j + W <= d; j += W) store(to + j, load(block.y[i] + j));
        for (; j < d; j++) store_scalar(to + j, block.y[i][j]);
    }
}

inline void write_leaves(const Call& call, int64_t t, const int32_t* tokens, const Block& block,
                         const Item* items, int64_t nodes) {
    for (int64_t i = 0; call.leaf && i < block.count; i++)
        call.leaf[tokens[items[i].token] * call.layer.trees + t] = items[i].node - nodes;
}

// All trees for one block of tokens.
template <class R>
void forward_block(const Call& call, const int32_t* tokens, int64_t count) {
    Block block;
    Item *items = scratch<Item>(Purpose::block_items, Block::SIZE),
         *spare = scratch<Item>(Purpose::block_spare, Block::SIZE);
    gather(call, 0, tokens, count, block);
    for (int64_t t = 0; t < call.layer.trees; t++) {
        const Tree<R> tree(call.layer, t);
        for (int64_t i = 0; i < count; i++) items[i] = {int32_t(i), 0};
        descend(tree, block, items, spare, 0, tree.levels);
        write_leaves(call, t, tokens, block, items, tree.nodes);
        add_outputs(call.layer, tree, block, items, leaf_hidden(call.layer, tree, block, items), t == 0);
        if (call.score_stride > tree.levels)
            for (int64_t i = 0; i < count; i++) block.scores[i] += tree.levels;
    }
    scatter(call, tokens, block);
}

inline int64_t parts_of(int64_t tokens, int64_t threads) {
    return least(threads, (tokens + 3) / 4);
}

// Each thread takes tokens as they come.
template <class R>
void forward_unsorted(const Call& call, int64_t threads) {
    const int64_t parts = parts_of(call.tokens, threads);
    in_parallel(parts, [&](int64_t part) {
        int32_t tokens[Block::SIZE];
        const int64_t end = call.tokens * (part + 1) / parts;
        for (int64_t start = call.tokens * part / parts; start < end; start += Block::SIZE) {
            const int64_t count = least(Block::SIZE, end - start);
            for (int64_t i = 0; i < count; i++) tokens[i] = int32_t(start + i);
            forward_block<R>(call, tokens, count);
        }
    });
}

// One tree over many tokens, in two phases: down to level `split` as they come, and, sorted by the node that they
// reached there, from it to the leaves, so that each subtree's rows are read once while they are in cache.
template <class R>
void forward_sorted(const Call& call, int64_t t, int64_t split, int64_t threads) {
    const Tree<R> tree(call.layer, t);
    const int64_t n = call.tokens, parts = parts_of(n, threads);
    int32_t* reached = scratch<int32_t>(Purpose::order, n);
    int32_t* order = scratch<int32_t>(Purpose::sorted, n);
    const int64_t places = int64_t(1) << split, leftmost = places - 1;
    in_parallel(parts, [&](int64_t part) {
        Block block;
        Item *items = scratch<Item>(Purpose::block_items, Block::SIZE),
             *spare = scratch<Item>(Purpose::block_spare, Block::SIZE);
        int32_t tokens[Block::SIZE];
        const int64_t end = n * (part + 1) / parts;
        for (int64_t start = n * part / parts; start < end; start += Block::SORTED_SIZE) {
            const int64_t count = least(Block::SORTED_SIZE, end - start);
            for (int64_t i = 0; i < count; i++) {
                tokens[i] = int32_t(start + i);
                items[i] = {int32_t(i), 0};
            }
            gather(call, t, tokens, count, block);
            descend(tree, block, items, spare, 0, split);
            for (int64_t i = 0; i < count; i++) reached[start + items[i].token] = items[i].node;
        }
    });
    int64_t* place = scratch<int64_t>(Purpose::counts, places + 1);
    for (int64_t i = 0; i <= places; i++) place[i] = 0;
    for (int64_t i = 0; i < n; i++) place[reached[i] - leftmost + 1]++;
    for (int64_t i = 1; i <= places; i++) place[i] += place[i - 1];
    for (int64_t i = 0; i < n; i++) order[place[reached[i] - leftmost]++] = int32_t(i);
    in_parallel(parts, [&](int64_t part) {
        Block block;
        Item *items = scratch<Item>(Purpose::block_items, Block::SIZE),
             *spare = scratch<Item>(Purpose::block_spare, Block::SIZE);
        const int64_t end = n * (part + 1) / parts;
        for (int64_t start = n * part / parts; start < end; start += Block::SORTED_SIZE) {
            const int64_t count = least(Block::SORTED_SIZE, end - start);
            gather(call, t, order + start, count, block);
            for (int64_t i = 0; i < count; i++) items[i] = {int32_t(i), reached[order[start + i]]};
            descend(tree, block, items, spare, split, tree.levels);
            write_leaves(call, t, order + start, block, items, tree.nodes);
            add_outputs(call.layer, tree, block, items, leaf_hidden(call.layer, tree, block, items),
                        call.first);
            scatter(call, order + start, block);
        }
    });
}

template <class R>
void forward(const fff_layer& layer, const void* x, int64_t x_stride, int64_t tokens, void* y,
             int64_t io_type, float* logits, int64_t* leaf, int64_t threads) {
    const int64_t levels = layer.depth + 1;
    fff::expect_writes(y, size_t(tokens * layer.d_out) * (io_type == FFF_FLOAT32 ? 4 : 2));
    Call call{layer, x, x_stride, tokens, y, io_type, logits, layer.trees * levels, leaf, true};
    const bool sorted = tokens > 2 * Block::SORTED_SIZE && (layer.trees == 1 || (layer.leaf_width && io_type == FFF_FLOAT32));
    if (!logits) {
        call.score_stride = levels;
        call.scores = scratch<float>(Purpose::scores, tokens * levels);
    }
    if (!sorted) return forward_unsorted<R>(call, threads);
    int64_t split = 1;
    while (split < levels && (Block::SORTED_SIZE << split) < tokens) split++;
    if (layer.leaf_width) split = levels;
    for (int64_t t = 0; t < layer.trees; t++) {
        call.first = t == 0;
        forward_sorted<R>(call, t, split, threads);
    }
}

}  // namespace
