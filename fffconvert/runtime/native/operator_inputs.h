// What the inputs of the operator fffconvert::CMM must be, and the one place that holds them against it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace {

enum element { FLOAT = 1, INT8 = 3, BFLOAT16 = 16 };

// The inputs, in the order of the torch op `fffconvert::cmm_inference`.
enum input {
    X, BIAS, IN, IN_BIAS, OUT, CONSTANT, LEAF_IN, LEAF_IN_BIAS, LEAF_GATE, LEAF_GATE_BIAS, LEAF_OUT, LEAF_THRESHOLD,
    IN_SCALE, OUT_SCALE, CONSTANT_SCALE, LEAF_IN_SCALE, LEAF_GATE_SCALE, LEAF_OUT_SCALE, INPUTS,
};

constexpr size_t RANK = 4;  // of the inputs with the most axes

enum axis { TOKENS, D_IN, D_OUT, TREES, NODES, OUT_ROWS, LEAVES, WIDTH, AXES };

// What an input must be. Rows are all of one type, and have scales where that is int8; all else is float32.
struct Formal {
    const char* name;
    bool rows;
    size_t rank;
    axis axes[RANK];
};

constexpr Formal formals[INPUTS] = {
    {"x", false, 2, {TOKENS, D_IN}},
    {"bias", false, 1, {D_OUT}},
    {"in_weight", true, 3, {TREES, NODES, D_IN}},
    {"in_bias", false, 2, {TREES, NODES}},
    {"out_weight", true, 3, {TREES, OUT_ROWS, D_OUT}},
    {"leaf_constant", true, 3, {TREES, LEAVES, D_OUT}},
    {"leaf_in_weight", true, 4, {TREES, LEAVES, WIDTH, D_IN}},
    {"leaf_in_bias", false, 3, {TREES, LEAVES, WIDTH}},
    {"leaf_gate_weight", true, 4, {TREES, LEAVES, WIDTH, D_IN}},
    {"leaf_gate_bias", false, 3, {TREES, LEAVES, WIDTH}},
    {"leaf_out_weight", true, 4, {TREES, LEAVES, WIDTH, D_OUT}},
    {"leaf_threshold", false, 3, {TREES, LEAVES, WIDTH}},
    {"in_weight_scale", false, 2, {TREES, NODES}},
    {"out_weight_scale", false, 2, {TREES, OUT_ROWS}},
    {"leaf_constant_scale", false, 2, {TREES, LEAVES}},
    {"leaf_in_weight_scale", false, 3, {TREES, LEAVES, WIDTH}},
    {"leaf_gate_weight_scale", false, 3, {TREES, LEAVES, WIDTH}},
    {"leaf_out_weight_scale", false, 3, {TREES, LEAVES, WIDTH}},
};

constexpr int64_t UNKNOWN = -1;  // a size that only the call will tell

struct Tensor {
    bool given = false;
    bool shaped = true;  // whether its number of axes is known
    void* data = nullptr;
    int type = 0;
    size_t rank = 0;
    int64_t size[RANK] = {};
};

void need(bool holds, const std::string& message) {
    if (!holds) throw std::invalid_argument("fffconvert::CMM: " + message + "; export the model again");
}

std::string text(const int64_t* size, size_t rank) {
    std::string joined;
    for (size_t i = 0; i < rank; i++)
        joined += (i ? ", " : "") + (size[i] == UNKNOWN ? std::string("?") : std::to_string(size[i]));
    return "[" + joined + "]";
}

// Holds the inputs against one another, as `check_inference_arguments` does in Python: at load what is known
// then, and everything at each call, so that the kernels read and write nothing but these tensors.
class Inputs {
  public:
    Tensor t[INPUTS];
    int64_t size[AXES];
    int64_t depth = 0;

    void check() {
        for (input i : {X, BIAS, IN, IN_BIAS, OUT}) need(t[i].given, std::string(formals[i].name) + " is missing");
        for (const Tensor& tensor : t) check_rank(tensor);
        find_sizes();
        for (const Tensor& tensor : t) check_tensor(tensor);
        const bool block = given(LEAF_OUT), gate = given(LEAF_GATE);
        need(given(LEAF_IN) == block && given(LEAF_IN_BIAS) == block, "a part of the leaf blocks is missing");
        need(given(LEAF_GATE_BIAS) == gate && (block || !gate), "a part of the leaf blocks' gate is missing");
        need(block || !given(LEAF_THRESHOLD), "there are thresholds and no leaf blocks");
        check_scale(IN, IN_SCALE);
        check_scale(OUT, OUT_SCALE);
        check_scale(CONSTANT, CONSTANT_SCALE);
        check_scale(LEAF_IN, LEAF_IN_SCALE);
        check_scale(LEAF_GATE, LEAF_GATE_SCALE);
        check_scale(LEAF_OUT, LEAF_OUT_SCALE);
    }

    bool given(input i) const { return t[i].given; }

  private:
    const Formal& formal(const Tensor& tensor) const { return formals[&tensor - t]; }

    void check_rank(const Tensor& tensor) const {
        const Formal& expected = formal(tensor);
        need(!tensor.given || !tensor.shaped || tensor.rank == expected.rank,
             std::string(expected.name) + " has " + std::to_string(tensor.rank) + " axes; expected " +
                 std::to_string(expected.rank));
    }

    int64_t find(input i, size_t axis) const { return t[i].shaped ? t[i].size[axis] : UNKNOWN; }

    void find_sizes() {
        size[TOKENS] = find(X, 0);
        size[TREES] = find(IN, 0);
        size[D_IN] = find(IN, 2);
        size[D_OUT] = find(OUT, 2);
        size[WIDTH] = given(LEAF_OUT) ? find(LEAF_OUT, 2) : 0;
        const int64_t nodes = size[NODES] = find(IN, 1), rows = find(OUT, 1);
        size[LEAVES] = nodes == UNKNOWN ? UNKNOWN : nodes + 1;
        size[OUT_ROWS] = nodes == UNKNOWN || rows == UNKNOWN ? UNKNOWN : rows == 2 * nodes ? rows : nodes;
        need(size[TOKENS] <= INT32_MAX, "x has more than 2147483647 tokens");
        for (axis a : {TREES, D_IN, D_OUT})
            need(size[a] != 0, "in_weight or out_weight is empty");
        // Nodes are numbered in 32 bits, those below the leaves too.
        need(nodes == UNKNOWN || (nodes > 0 && !(nodes & (nodes + 1)) && nodes < int64_t(1) << 30),
             "in_weight has " + std::to_string(nodes) + " nodes a tree; expected 2^(D + 1) - 1 with D below 29");
        while ((int64_t(2) << depth) - 1 < nodes) depth++;
    }

    void check_tensor(const Tensor& tensor) const {
        if (!tensor.given) return;
        const Formal& expected = formal(tensor);
        int64_t wanted[RANK];
        bool fits = true;
        for (size_t i = 0; i < expected.rank; i++) {
            wanted[i] = size[expected.axes[i]];
            fits &= !tensor.shaped || tensor.size[i] == wanted[i] || tensor.size[i] == UNKNOWN || wanted[i] == UNKNOWN;
        }
        need(fits, std::string(expected.name) + " is " + text(tensor.size, expected.rank) + "; expected " +
                       text(wanted, expected.rank));
        const int rows = t[IN].type;
        if (!expected.rows) need(tensor.type == FLOAT, std::string(expected.name) + " is not float32");
        else
            need(tensor.type == rows && (rows == FLOAT || rows == BFLOAT16 || rows == INT8),
                 std::string(expected.name) + " is not of the type of in_weight; expected float32, bfloat16 or int8");
    }

    void check_scale(input rows, input scale) const {
        const bool needed = given(rows) && t[rows].type == INT8;
        need(given(scale) == needed, std::string(formals[scale].name) + (needed ? " is missing" : " belongs to no int8 rows"));
    }
};

}  // namespace
