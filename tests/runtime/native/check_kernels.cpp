// Runs every kernel on buffers of exactly the size that it may touch, so that a sanitizer sees each step past
// them, and compares with one token and one node at a time. Small integers make all sums exact.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "cmm.h"

namespace {

constexpr int64_t RELU = 4;
std::mt19937 generator(0);

template <class T>
std::vector<T> integers(int64_t count, int scale = 1, int offset = 0) {
    std::uniform_int_distribution<int> draw(-2, 2);
    std::vector<T> values(count);
    for (T& value : values) value = T(scale * draw(generator) + offset);
    return values;
}

// bfloat16 is the upper half of a float32.
std::vector<uint16_t> halves(const std::vector<float>& values) {
    std::vector<uint16_t> result;
    for (float value : values) {
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        result.push_back(uint16_t(bits >> 16));
    }
    return result;
}

// The rows of one matrix in each of the three types; float32 ones are what the others stand for.
struct Matrix {
    std::vector<float> wide, scale;
    std::vector<uint16_t> half;
    std::vector<int8_t> small;

    Matrix(int64_t rows, int64_t d, int factor = 1) : wide(integers<float>(rows * d, factor)), scale(rows, 1.f) {
        half = halves(wide);
        small.assign(wide.begin(), wide.end());
    }
    fff_rows rows(int64_t type) const {
        if (wide.empty()) return {nullptr, nullptr};
        if (type == FFF_FLOAT32) return {wide.data(), nullptr};
        if (type == FFF_BFLOAT16) return {half.data(), nullptr};
        return {small.data(), scale.data()};
    }
};

struct Case {
    int64_t trees, depth, branches, width, gated, sparse, d_in, d_out;
    int64_t nodes = (int64_t(2) << depth) - 1, leaves = nodes + 1;
    Matrix in{trees * nodes, d_in, 2}, out{trees * nodes * branches, d_out};
    Matrix constant{branches == 2 ? trees * leaves : 0, d_out};
    Matrix leaf_in{trees * leaves * width, d_in}, leaf_gate{gated ? trees * leaves * width : 0, d_in};
    Matrix leaf_out{trees * leaves * width, d_out};
    std::vector<float> in_bias = integers<float>(trees * nodes, 2, 1), bias = integers<float>(d_out);
    std::vector<float> leaf_in_bias = integers<float>(trees * leaves * width);
    std::vector<float> leaf_gate_bias = integers<float>(trees * leaves * width);
    std::vector<float> leaf_threshold = integers<float>(trees * leaves * width);

    fff_layer layer(int64_t type) const {
        return {trees,
                depth,
                branches,
                width,
                d_in,
                d_out,
                RELU,
                type,
                in.rows(type),
                in_bias.data(),
                out.rows(type),
                constant.rows(type),
                leaf_in.rows(type),
                leaf_in_bias.data(),
                leaf_gate.rows(type),
                leaf_gate_bias.data(),
                leaf_out.rows(type),
                sparse ? leaf_threshold.data() : nullptr,
                bias.data()};
    }
};

float dot(const float* a, const float* b, int64_t d) {
    float total = 0;
    for (int64_t i = 0; i < d; i++) total += a[i] * b[i];
    return total;
}

void add(float* y, float factor, const float* row, int64_t d) {
    for (int64_t i = 0; i < d; i++) y[i] += factor * row[i];
}

float relu(float s) { return s > 0 ? s : 0; }

// One token, one tree, one node after another.
void one_token(const Case& c, const float* x, float* y, float* logits, int64_t* leaf) {
    add(y, 1, c.bias.data(), c.d_out);
    for (int64_t t = 0; t < c.trees; t++) {
        int64_t node = 0;
        for (int64_t k = 0; k <= c.depth; k++) {
            const int64_t at = t * c.nodes + node;
            const float s = dot(x, &c.in.wide[at * c.d_in], c.d_in) + c.in_bias[at];
            const int64_t row = c.branches == 2 ? t * 2 * c.nodes + 2 * node + (s > 0) : at;
            add(y, relu(s), &c.out.wide[row * c.d_out], c.d_out);
            logits[t * (c.depth + 1) + k] = s;
            node = 2 * node + 1 + (s > 0);
        }
        const int64_t end = leaf[t] = node - c.nodes, place = t * c.leaves + end;
        if (c.branches == 2) add(y, 1, &c.constant.wide[place * c.d_out], c.d_out);
        for (int64_t j = place * c.width; j < (place + 1) * c.width; j++) {
            float h = relu(dot(x, &c.leaf_in.wide[j * c.d_in], c.d_in) + c.leaf_in_bias[j]);
            if (c.sparse && std::fabs(h) <= c.leaf_threshold[j]) h = 0;
            if (c.gated) h *= dot(x, &c.leaf_gate.wide[j * c.d_in], c.d_in) + c.leaf_gate_bias[j];
            add(y, h, &c.leaf_out.wide[j * c.d_out], c.d_out);
        }
    }
}

void expect(bool holds, const std::string& what) {
    if (holds) return;
    std::fprintf(stderr, "wrong: %s\n", what.c_str());
    std::exit(1);
}

void check_forward(const Case& c, int64_t tokens, int64_t threads, const std::string& name) {
    const int64_t visits = c.trees * (c.depth + 1);
    const std::vector<float> x = integers<float>(tokens * c.d_in);
    std::vector<float> y(tokens * c.d_out), logits(tokens * visits);
    std::vector<int64_t> leaf(tokens * c.trees);
    for (int64_t i = 0; i < tokens; i++)
        one_token(c, &x[i * c.d_in], &y[i * c.d_out], &logits[i * visits], &leaf[i * c.trees]);
    for (int64_t type : {FFF_FLOAT32, FFF_BFLOAT16, FFF_INT8}) {
        const fff_layer layer = c.layer(type);
        std::vector<float> found(y.size(), NAN), s(logits.size(), NAN);
        std::vector<int64_t> at(leaf.size(), -1);
        fff_forward(&layer, x.data(), c.d_in, tokens, found.data(), FFF_FLOAT32, s.data(), at.data(), threads);
        expect(found == y, name + ": outputs");
        expect(s == logits && at == leaf, name + ": paths");
        const std::vector<uint16_t> half = halves(x);
        std::vector<uint16_t> rounded(y.size());
        fff_forward(&layer, half.data(), c.d_in, tokens, rounded.data(), FFF_BFLOAT16, nullptr, nullptr, threads);
        for (size_t i = 0; i < y.size(); i++) {
            const uint32_t bits = uint32_t(rounded[i]) << 16;
            float value;
            std::memcpy(&value, &bits, 4);
            expect(std::fabs(value - y[i]) <= std::fabs(y[i]) / 256, name + ": bfloat16 outputs");
        }
    }
    std::vector<float> strange(tokens * c.d_in);
    for (size_t i = 0; i < strange.size(); i++)
        strange[i] = i % 3 ? std::numeric_limits<float>::infinity() : NAN;
    const fff_layer layer = c.layer(FFF_FLOAT32);
    fff_forward(&layer, strange.data(), c.d_in, tokens, y.data(), FFF_FLOAT32, nullptr, leaf.data(), threads);
    for (int64_t end : leaf) expect(end >= 0 && end < c.leaves, name + ": paths of NaN and infinity");
}

void check_backward(const Case& c, int64_t tokens, int64_t threads, const std::string& name) {
    const int64_t visits = c.trees * (c.depth + 1);
    const std::vector<float> x = integers<float>(tokens * c.d_in), grad_y = integers<float>(tokens * c.d_out);
    const std::vector<float> grad_logits = integers<float>(tokens * visits);
    std::vector<float> y(tokens * c.d_out), logits(tokens * visits);
    std::vector<int64_t> leaf(tokens * c.trees);
    const fff_layer layer = c.layer(FFF_FLOAT32);
    fff_forward(&layer, x.data(), c.d_in, tokens, y.data(), FFF_FLOAT32, logits.data(), leaf.data(), threads);
    std::vector<float> gx(x.size(), NAN), gin(c.in.wide.size()), gbias(c.in_bias.size()), gout(c.out.wide.size());
    std::vector<float> gconstant(c.constant.wide.size());
    const fff_gradients gradients{gx.data(), gin.data(), gbias.data(), gout.data(),
                                  gconstant.empty() ? nullptr : gconstant.data()};
    fff_backward(&layer, grad_y.data(), grad_logits.data(), x.data(), tokens, logits.data(), leaf.data(),
                 &gradients, threads);
    std::vector<float> ex(x.size()), ein(gin.size()), ebias(gbias.size()), eout(gout.size()), econstant(gconstant.size());
    for (int64_t i = 0; i < tokens; i++)
        for (int64_t t = 0; t < c.trees; t++) {
            int64_t node = 0;
            for (int64_t k = 0; k <= c.depth; k++) {
                const int64_t at = t * c.nodes + node;
                const float s = logits[i * visits + t * (c.depth + 1) + k];
                const int64_t row = c.branches == 2 ? t * 2 * c.nodes + 2 * node + (s > 0) : at;
                const float* gy = &grad_y[i * c.d_out];
                const float gs = grad_logits[i * visits + t * (c.depth + 1) + k] +
                                 (s > 0 ? dot(gy, &c.out.wide[row * c.d_out], c.d_out) : 0);
                add(&ex[i * c.d_in], gs, &c.in.wide[at * c.d_in], c.d_in);
                add(&ein[at * c.d_in], gs, &x[i * c.d_in], c.d_in);
                ebias[at] += gs;
                add(&eout[row * c.d_out], relu(s), gy, c.d_out);
                node = 2 * node + 1 + (s > 0);
            }
            if (c.branches == 2)
                add(&econstant[(t * c.leaves + node - c.nodes) * c.d_out], 1, &grad_y[i * c.d_out], c.d_out);
        }
    expect(gx == ex && gin == ein && gbias == ebias && gout == eout && gconstant == econstant,
           name + ": gradients");
}

}  // namespace

int main() {
    std::istringstream sets(fff_instruction_sets());
    for (std::string set; sets >> set;) {
        expect(fff_use_instruction_set(set.c_str()) == 0, "choosing " + set);
        int64_t cases = 0;
        for (int64_t trees : {1, 3})
            for (int64_t depth : {0, 2, 5})
                for (int64_t branches : {1, 2})
                    for (int64_t width : {0, 1, 5})
                        for (auto [d_in, d_out] : {std::pair<int64_t, int64_t>{1, 3}, {16, 64}, {67, 35}}) {
                            const Case c{trees, depth, branches, width, width == 5, width && branches == 2, d_in, d_out};
                            const std::string name = set + " " + std::to_string(trees) + "x" + std::to_string(depth) +
                                                     " leaves of " + std::to_string(width);
                            for (int64_t tokens : {0, 1, 3, 66, 270}) {
                                check_forward(c, tokens, 1 + cases % 3, name);
                                if (!width) check_backward(c, tokens, 1 + cases % 3, name);
                                cases++;
                            }
                        }
        const Case c{1, 6, 2, 0, 0, 0, 40, 40};
        std::vector<std::thread> callers;
        for (int i = 0; i < 4; i++)
            callers.emplace_back([&c, &set] {
                const fff_layer layer = c.layer(FFF_FLOAT32);
                const std::vector<float> x(500 * 40, 1.f);
                std::vector<float> first(500 * 40), again(500 * 40);
                fff_forward(&layer, x.data(), 40, 500, first.data(), FFF_FLOAT32, nullptr, nullptr, 2);
                for (int n = 0; n < 20; n++) {
                    fff_forward(&layer, x.data(), 40, 500, again.data(), FFF_FLOAT32, nullptr, nullptr, 2);
                    expect(again == first, set + ": several callers at once");
                }
            });
        for (auto& caller : callers) caller.join();
        std::printf("%s: %ld cases agree\n", set.c_str(), long(cases));
    }
    return 0;
}
