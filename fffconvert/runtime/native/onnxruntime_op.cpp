// The operator fffconvert::CMM for ONNX Runtime, on the same kernels: `fffconvert.register_onnxruntime`.
//
// ONNX Runtime hands over a table of functions whose order never changes; it only grows. What is used of it is
// declared here by position, so that nothing of ONNX Runtime is needed to build this.
// Reference: onnxruntime_c_api.h, structures OrtApiBase, OrtApi and OrtCustomOp, API version 17 (release 1.17).
#include <algorithm>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>
#include <thread>

#include "cmm.h"
#include "operator_inputs.h"
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
    AS_TENSOR = 55,
    ELEMENT_TYPE = 60,
    DIMENSIONS_COUNT = 61,
    DIMENSIONS = 62,
    TYPE_AND_SHAPE = 65,
    ATTRIBUTE_INT64 = 86,
    INPUT_COUNT = 88,
    INPUT = 90,
    OUTPUT = 91,
    RELEASE_STATUS = 93,
    RELEASE_TYPE = 98,
    RELEASE_TYPE_AND_SHAPE = 99,
    NODE_INPUT_COUNT = 230,
    NODE_INPUT_TYPE = 234,
    PARALLEL_FOR = 274,
};

template <class... Arguments>
Status call(Api api, slot at, Arguments... arguments) {
    return reinterpret_cast<Status (*)(Arguments...)>(api[at])(arguments...);
}

void release(Api api, slot at, void* object) { reinterpret_cast<void (*)(void*)>(api[at])(object); }

Status failure(Api api, const char* message) { return call(api, CREATE_STATUS, 2, message); }  // 2: invalid argument

// An error that came out of a call, thrown where it is simpler than to hand it on.
struct Error {
    Status status;
};

void check(Status status) {
    if (status) throw Error{status};
}

// Gives an object back when it is left.
struct Released {
    Api api;
    slot at;
    void* object;
    ~Released() { release(api, at, object); }
};

struct Kernel {
    Api api;
    int64_t activation;

    // Read a type and shape. Of shapes in a model, sizes may be names, and an unknown rank is given as 0.
    void read(void* info, bool in_model, Tensor& tensor) const {
        tensor.given = true;
        check(call(api, ELEMENT_TYPE, info, &tensor.type));
        check(call(api, DIMENSIONS_COUNT, info, &tensor.rank));
        tensor.shaped = !in_model || tensor.rank > 0;
        if (tensor.rank > RANK) return;
        check(call(api, DIMENSIONS, info, tensor.size, tensor.rank));
        for (int64_t& size : tensor.size) size = std::max(size, UNKNOWN);
    }

    // What the model says of an input of its node.
    void read_in_model(const void* node, size_t index, Tensor& tensor) const {
        void *type = nullptr, *info = nullptr;
        if (Status absent = call(api, NODE_INPUT_TYPE, node, index, &type)) return release(api, RELEASE_STATUS, absent);
        const Released released{api, RELEASE_TYPE, type};
        check(call(api, AS_TENSOR, type, &info));
        need(info, std::string(formals[index].name) + " is no tensor");
        read(info, true, tensor);
    }

    // What a call brings.
    void read_in_call(void* context, size_t index, Tensor& tensor) const {
        void *value = nullptr, *info = nullptr;
        check(call(api, INPUT, context, index, &value));
        if (!value) return;
        check(call(api, TENSOR_DATA, value, &tensor.data));
        check(call(api, TYPE_AND_SHAPE, value, &info));
        const Released released{api, RELEASE_TYPE_AND_SHAPE, info};
        read(info, false, tensor);
    }

    void check_model(const void* node) const {
        size_t count = 0;
        check(call(api, NODE_INPUT_COUNT, node, &count));
        if (activation < 0 || activation >= FFF_ACTIVATIONS)
            throw std::invalid_argument("fffconvert::CMM: activation " + std::to_string(activation) + " is unknown; expected 0 to " +
                                        std::to_string(FFF_ACTIVATIONS - 1) + "; update fffconvert");
        Inputs inputs;
        for (size_t i = 0; i < std::min(count, size_t(INPUTS)); i++) read_in_model(node, i, inputs.t[i]);
        inputs.check();
    }

    void compute(void* context) const {
        size_t count = 0;
        check(call(api, INPUT_COUNT, context, &count));
        Inputs inputs;
        const Tensor* t = inputs.t;
        for (size_t i = 0; i < std::min(count, size_t(INPUTS)); i++) read_in_call(context, i, inputs.t[i]);
        inputs.check();
        auto rows = [&](input data, input scale) {
            return fff_rows{t[data].data, static_cast<const float*>(t[scale].data)};
        };
        auto vector = [&](input i) { return static_cast<const float*>(t[i].data); };
        fff_layer layer{};
        layer.trees = inputs.size[TREES];
        layer.depth = inputs.depth;
        layer.branches = inputs.size[OUT_ROWS] / inputs.size[NODES];
        layer.leaf_width = inputs.size[WIDTH];
        layer.d_in = inputs.size[D_IN];
        layer.d_out = inputs.size[D_OUT];
        layer.activation = activation;
        layer.row_type = t[IN].type == FLOAT ? FFF_FLOAT32 : t[IN].type == BFLOAT16 ? FFF_BFLOAT16 : FFF_INT8;
        layer.in = rows(IN, IN_SCALE);
        layer.in_bias = vector(IN_BIAS);
        layer.out = rows(OUT, OUT_SCALE);
        layer.constant = rows(CONSTANT, CONSTANT_SCALE);
        layer.leaf_in = rows(LEAF_IN, LEAF_IN_SCALE);
        layer.leaf_in_bias = vector(LEAF_IN_BIAS);
        layer.leaf_gate = rows(LEAF_GATE, LEAF_GATE_SCALE);
        layer.leaf_gate_bias = vector(LEAF_GATE_BIAS);
        layer.leaf_out = rows(LEAF_OUT, LEAF_OUT_SCALE);
        layer.leaf_threshold = vector(LEAF_THRESHOLD);
        layer.bias = vector(BIAS);
        const int64_t shape[] = {inputs.size[TOKENS], layer.d_out};
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
        fff_forward(&layer, t[X].data, layer.d_in, shape[0], y, FFF_FLOAT32, nullptr, nullptr, threads);
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

// Run what may throw, and turn that into ONNX Runtime's own form of an error.
template <class F>
Status guarded(Api api, F run) {
    try {
        run();
        return nullptr;
    } catch (const Error& error) {
        return error.status;
    } catch (const std::exception& error) {
        return failure(api, error.what());
    }
}

Status create(const Operator*, Api api, const void* node, void** kernel) {
    return guarded(api, [&] {
        Kernel made{api, 0};
        check(call(api, ATTRIBUTE_INT64, node, "activation", &made.activation));
        made.check_model(node);
        *kernel = new Kernel(made);
    });
}

Status compute(void* data, void* context) {
    const Kernel& kernel = *static_cast<const Kernel*>(data);
    return guarded(kernel.api, [&] { kernel.compute(context); });
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

void* made(Api api) {
    void* domain = nullptr;
    check(call(api, CREATE_DOMAIN, "fffconvert", &domain));
    check(call(api, DOMAIN_ADD, domain, &cmm));
    return domain;
}

}  // namespace

extern "C" FFF_API Status RegisterCustomOps(void* options, const ApiBase* base) {
    Api api = base->get_api(API_VERSION);
    if (!api) return failure(base->get_api(1), "fffconvert needs ONNX Runtime 1.17 or later");
    return guarded(api, [&] {
        static void* const domain = made(api);  // sessions refer to it as long as they live
        check(call(api, ADD_DOMAIN, options, domain));
    });
}
