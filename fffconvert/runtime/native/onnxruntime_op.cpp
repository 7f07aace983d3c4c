// The operator fffconvert::CMM for ONNX Runtime, on the same kernels: `fffconvert.register_onnxruntime`.
//
// ONNX Runtime hands over a table of functions whose order never changes; it only grows. What is used of it is
// declared here by position, so that nothing of ONNX Runtime is needed to build this.
// Reference: onnxruntime_c_api.h, structures OrtApiBase, OrtApi and OrtCustomOp, API version 17 (release 1.17).
#include <algorithm>
#include <cstdint>
#include <exception>
#include <thread>

#include "cmm.h"
#include "support.h"

namespace {

constexpr uint32_t API_VERSION = 17;  // the first with a way to use ONNX Runtime's own threads

using Status = void*;
using Api = void* const*;

struct ApiBase {
    Api (*get_api)(uint32_t version);
    const char* (*version)();
};

// Positions in the table.
enum slot : size_t {
    CREATE_STATUS = 0,
    CREATE_DOMAIN = 26,
    DOMAIN_ADD = 27,
    ADD_DOMAIN = 28,
    TENSOR_DATA = 51,
    ELEMENT_TYPE = 60,
    DIMENSIONS_COUNT = 61,
    DIMENSIONS = 62,
    TYPE_AND_SHAPE = 65,
    ATTRIBUTE_INT64 = 86,
    INPUT_COUNT = 88,
    INPUT = 90,
    OUTPUT = 91,
    RELEASE_TYPE_AND_SHAPE = 99,
    PARALLEL_FOR = 274,
};

template <class... Arguments>
Status call(Api api, slot at, Arguments... arguments) {
    return reinterpret_cast<Status (*)(Arguments...)>(api[at])(arguments...);
}

Status failure(Api api, const char* message) { return call(api, CREATE_STATUS, 2, message); }  // 2: invalid argument

// An error that came out of a call, thrown where it is simpler than to hand it on.
struct Error {
    Status status;
};

void check(Status status) {
    if (status) throw Error{status};
}

enum element { FLOAT = 1, INT8 = 3, BFLOAT16 = 16 };

struct Tensor {
    void* data = nullptr;
    int type = 0;
    size_t axes = 0;
    int64_t size[4] = {};
};

// The inputs, in the order of the torch op `fffconvert::cmm_inference`.
enum input {
    X, BIAS, IN, IN_BIAS, OUT, CONSTANT, LEAF_IN, LEAF_IN_BIAS, LEAF_GATE, LEAF_GATE_BIAS, LEAF_OUT, LEAF_THRESHOLD,
    IN_SCALE, OUT_SCALE, CONSTANT_SCALE, LEAF_IN_SCALE, LEAF_GATE_SCALE, LEAF_OUT_SCALE, INPUTS,
};

struct Kernel {
    Api api;
    int64_t activation;

    Tensor tensor(void* context, size_t index) const {
        size_t count = 0;
        check(call(api, INPUT_COUNT, context, &count));
        void* value = nullptr;
        if (index < count) check(call(api, INPUT, context, index, &value));
        Tensor tensor;
        if (!value) return tensor;
        void* info = nullptr;
        check(call(api, TENSOR_DATA, value, &tensor.data));
        check(call(api, TYPE_AND_SHAPE, value, &info));
        Status status = call(api, ELEMENT_TYPE, info, &tensor.type);
        if (!status) status = call(api, DIMENSIONS_COUNT, info, &tensor.axes);
        if (!status && tensor.axes <= 4) status = call(api, DIMENSIONS, info, tensor.size, tensor.axes);
        reinterpret_cast<void (*)(void*)>(api[RELEASE_TYPE_AND_SHAPE])(info);
        check(status);
        return tensor;
    }

    void need(bool holds, const char* message) const {
        if (!holds) throw Error{failure(api, message)};
    }

    fff_rows rows(const Tensor& data, const Tensor& scale, const Tensor& like) const {
        if (!data.data) return {nullptr, nullptr};
        need(data.type == like.type, "fffconvert::CMM: rows are of different types; expected one");
        need((data.type == INT8) == (scale.data != nullptr), "fffconvert::CMM: int8 rows need scales, others none");
        return {data.data, static_cast<const float*>(scale.data)};
    }

    const float* vector(const Tensor& tensor) const {
        need(!tensor.data || tensor.type == FLOAT, "fffconvert::CMM: biases and scales must be float32");
        return static_cast<const float*>(tensor.data);
    }

    void compute(void* context) const {
        Tensor t[INPUTS];
        for (size_t i = 0; i < INPUTS; i++) t[i] = tensor(context, i);
        const Tensor &x = t[X], &in = t[IN], &out = t[OUT];
        need(x.axes == 2 && in.axes == 3 && out.axes == 3, "fffconvert::CMM: expected x [tokens, d_in] and rows [T, N, d]");
        need(x.type == FLOAT || x.type == BFLOAT16, "fffconvert::CMM: x must be float32 or bfloat16");
        need(in.type == FLOAT || in.type == BFLOAT16 || in.type == INT8,
             "fffconvert::CMM: rows must be float32, bfloat16 or int8");
        const int64_t nodes = in.size[1], d_out = out.size[2];
        need(nodes > 0 && !(nodes & (nodes + 1)) && x.size[1] == in.size[2] && out.size[0] == in.size[0],
             "fffconvert::CMM: shapes of x and the trees do not fit");
        need(out.size[1] == nodes || out.size[1] == 2 * nodes, "fffconvert::CMM: expected one or two output rows a node");
        for (input i : {BIAS, IN_BIAS, LEAF_IN_BIAS, LEAF_GATE_BIAS, LEAF_THRESHOLD, IN_SCALE, OUT_SCALE, CONSTANT_SCALE, LEAF_IN_SCALE, LEAF_GATE_SCALE, LEAF_OUT_SCALE})
            vector(t[i]);
        fff_layer layer{};
        layer.trees = in.size[0];
        while ((int64_t(2) << layer.depth) - 1 < nodes) layer.depth++;
        layer.branches = out.size[1] / nodes;
        layer.leaf_width = t[LEAF_OUT].data ? t[LEAF_OUT].size[2] : 0;
        layer.d_in = x.size[1];
        layer.d_out = d_out;
        layer.activation = activation;
        layer.row_type = in.type == FLOAT ? FFF_FLOAT32 : in.type == BFLOAT16 ? FFF_BFLOAT16 : FFF_INT8;
        layer.in = rows(in, t[IN_SCALE], in);
        layer.in_bias = vector(t[IN_BIAS]);
        layer.out = rows(out, t[OUT_SCALE], in);
        layer.constant = rows(t[CONSTANT], t[CONSTANT_SCALE], in);
        layer.leaf_in = rows(t[LEAF_IN], t[LEAF_IN_SCALE], in);
        layer.leaf_in_bias = vector(t[LEAF_IN_BIAS]);
        layer.leaf_gate = rows(t[LEAF_GATE], t[LEAF_GATE_SCALE], in);
        layer.leaf_gate_bias = vector(t[LEAF_GATE_BIAS]);
        layer.leaf_out = rows(t[LEAF_OUT], t[LEAF_OUT_SCALE], in);
        layer.leaf_threshold = vector(t[LEAF_THRESHOLD]);
        layer.bias = vector(t[BIAS]);
        const int64_t shape[] = {x.size[0], d_out};
        void *value = nullptr, *y = nullptr;
        check(call(api, OUTPUT, context, size_t(0), &shape[0], size_t(2), &value));
        check(call(api, TENSOR_DATA, value, &y));
        struct Pool {
            const Kernel* kernel;
            void* context;
        } pool{this, context};
        const fff::InThreads in_threads(
            [](void* data, int64_t count, void (*take)(void*), void* parts) {
                struct Take {
                    void (*run)(void*);
                    void* parts;
                } each{take, parts};
                auto [kernel, context] = *static_cast<Pool*>(data);
                void (*run)(void*, size_t) = [](void* each, size_t) {
                    static_cast<Take*>(each)->run(static_cast<Take*>(each)->parts);
                };
                check(call(kernel->api, PARALLEL_FOR, context, run, size_t(count), size_t(count), static_cast<void*>(&each)));
            },
            &pool);
        // How many threads the session has is not told: parts are for the processor's, and are shared out among them.
        const int64_t threads = std::max(1u, std::thread::hardware_concurrency());
        fff_forward(&layer, x.data, layer.d_in, x.size[0], y, x.type == FLOAT ? FFF_FLOAT32 : FFF_BFLOAT16, nullptr,
                    nullptr, threads);
    }
};

// ONNX Runtime's table of one operator, up to what API version 17 reads.
struct Operator {
    uint32_t version;
    void* (*create)(const Operator*, Api, const void*);
    const char* (*name)(const Operator*);
    const char* (*provider)(const Operator*);
    int (*input_type)(const Operator*, size_t);
    size_t (*input_count)(const Operator*);
    int (*output_type)(const Operator*, size_t);
    size_t (*output_count)(const Operator*);
    void (*compute)(void*, void*);
    void (*destroy)(void*);
    int (*input_characteristic)(const Operator*, size_t);
    int (*output_characteristic)(const Operator*, size_t);
    int (*input_memory)(const Operator*, size_t);
    int (*variadic_input_arity)(const Operator*);
    int (*variadic_input_homogeneity)(const Operator*);
    int (*variadic_output_arity)(const Operator*);
    int (*variadic_output_homogeneity)(const Operator*);
    Status (*create_v2)(const Operator*, Api, const void*, void**);
    Status (*compute_v2)(void*, void*);
    Status (*infer_shape)(const Operator*, void*);
    int (*start_version)(const Operator*);
    int (*end_version)(const Operator*);
};

int any_number(const Operator*) { return 1; }

Status create(const Operator*, Api api, const void* info, void** kernel) {
    int64_t activation = 0;
    if (Status status = call(api, ATTRIBUTE_INT64, info, "activation", &activation)) return status;
    *kernel = new Kernel{api, activation};
    return nullptr;
}

Status compute(void* kernel, void* context) {
    try {
        static_cast<const Kernel*>(kernel)->compute(context);
        return nullptr;
    } catch (const Error& error) {
        return error.status;
    } catch (const std::exception& error) {
        return failure(static_cast<const Kernel*>(kernel)->api, error.what());
    }
}

const Operator cmm{
    API_VERSION,
    nullptr,
    [](const Operator*) { return "CMM"; },
    [](const Operator*) -> const char* { return nullptr; },  // the CPU
    [](const Operator*, size_t) { return 0; },               // any type; `compute` says what it takes
    [](const Operator*) { return size_t(INPUTS); },
    [](const Operator*, size_t) { return int(FLOAT); },
    [](const Operator*) { return size_t(1); },
    nullptr,
    [](void* kernel) { delete static_cast<Kernel*>(kernel); },
    [](const Operator*, size_t index) { return index <= OUT ? 0 : 1; },  // 1: optional
    [](const Operator*, size_t) { return 0; },
    [](const Operator*, size_t) { return 0; },
    any_number,
    any_number,
    any_number,
    any_number,
    create,
    compute,
    nullptr,
    any_number,
    [](const Operator*) { return INT32_MAX; },
};

}  // namespace

extern "C" FFF_API Status RegisterCustomOps(void* options, const ApiBase* base) {
    Api api = base->get_api(API_VERSION);
    if (!api) return failure(base->get_api(1), "fffconvert needs ONNX Runtime 1.17 or later");
    static void* domain = nullptr;  // sessions refer to it as long as they live
    if (!domain) {
        if (Status status = call(api, CREATE_DOMAIN, "fffconvert", &domain)) return status;
        if (Status status = call(api, DOMAIN_ADD, domain, &cmm)) return status;
    }
    return call(api, ADD_DOMAIN, options, domain);
}
