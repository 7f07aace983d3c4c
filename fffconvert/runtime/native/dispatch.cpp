// Chooses the kernels of one instruction set at run time.
#include <atomic>
#include <cstring>
#include <string>

#include "cmm.h"

#define FFF_DECLARE(set)                      \
    extern "C" fff_forward_fn fff_forward_##set; \
    extern "C" fff_backward_fn fff_backward_##set;

FFF_DECLARE(baseline)
#ifdef FFF_X86
FFF_DECLARE(avx2)
FFF_DECLARE(avx512)
#endif

namespace {

struct Kernels {
    const char* name;
    bool (*runs)();
    fff_forward_fn* forward;
    fff_backward_fn* backward;
};

bool always() { return true; }
#ifdef FFF_X86
bool has_avx2() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

// Best first. On Arm the baseline has NEON.
const Kernels all[] = {
#ifdef FFF_X86
    {"avx512", has_avx512, fff_forward_avx512, fff_backward_avx512},
    {"avx2", has_avx2, fff_forward_avx2, fff_backward_avx2},
#endif
    {FFF_BASELINE, always, fff_forward_baseline, fff_backward_baseline},
};

const Kernels* best() {
    for (const Kernels& kernels : all)
        if (kernels.runs()) return &kernels;
    return nullptr;
}

std::atomic<const Kernels*> chosen{best()};

}  // namespace

const char* fff_instruction_sets() {
    static const std::string names = [] {
        std::string joined;
        for (const Kernels& kernels : all)
            if (kernels.runs()) joined += (joined.empty() ? "" : " ") + std::string(kernels.name);
        return joined;
    }();
    return names.c_str();
}

int fff_use_instruction_set(const char* name) {
    for (const Kernels& kernels : all)
        if (!std::strcmp(kernels.name, name) && kernels.runs()) {
            chosen = &kernels;
            return 0;
        }
    return -1;
}

const char* fff_instruction_set() { return chosen.load()->name; }

void fff_forward(const fff_layer* layer, const void* x, int64_t x_stride, int64_t tokens, void* y, int64_t io_type,
                 float* logits, int64_t* leaf, int64_t threads) {
    if (tokens > 0) chosen.load()->forward(layer, x, x_stride, tokens, y, io_type, logits, leaf, threads);
}

void fff_backward(const fff_layer* layer, const float* grad_y, const float* grad_logits, const float* x,
                  int64_t tokens, const float* logits, const int64_t* leaf, const fff_gradients* gradients,
                  int64_t threads) {
    if (tokens > 0)
        chosen.load()->backward(layer, grad_y, grad_logits, x, tokens, logits, leaf, gradients, threads);
}
