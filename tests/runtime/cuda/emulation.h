// CUDA on the CPU, as far as the kernels use it; takes the place of machine.cuh.
//
// Threads of a block are fibers that run until they wait: at a barrier for the block, at a shuffle for the warp. They
// are resumed in an order drawn from a seed, so that a missing barrier shows in the results. Blocks run one by one.

#include <math.h>
#include <setjmp.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __device__
#define __global__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define DYNAMIC_SHARED(name) unsigned char* const name = emulation::dynamic_shared

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct Index {
  unsigned x, y, z;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

static unsigned char* dynamic_shared;
static const char* failure;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  void* fake_stack = nullptr;
  unsigned thread = 0;
  jmp_buf place;
  bool started = false, done = false;
  uint64_t barriers = 0, collectives = 0;  // that it has arrived at
};

constexpr size_t STACK = 64 << 10;
#if defined(__SANITIZE_ADDRESS__)
static ucontext_t scheduler;
static void* scheduler_fake_stack;
static const void* scheduler_stack;
static size_t scheduler_stack_size;
#else
static jmp_buf scheduler_place;
#endif
static std::vector<Fiber> fibers;
static Fiber* current;
static void (*body)();

// What lanes hand to each other in one collective operation; the next one uses the other half.
struct Exchange {
  uint64_t arrivals = 0;
  unsigned words[2][32][6];
};
static std::vector<Exchange> exchanges;
static uint64_t barriers;  // arrivals at barriers, of all threads

// swapcontext asks the kernel for the signal mask each time, so it only starts fibers; then _setjmp switches. Under the
// sanitizer, which wants to know of every switch, swapcontext does it all.
[[gnu::noinline]] inline void to_scheduler() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(current->done ? nullptr : &current->fake_stack, scheduler_stack, scheduler_stack_size);
  swapcontext(&current->context, &scheduler);
  __sanitizer_finish_switch_fiber(current->fake_stack, &scheduler_stack, &scheduler_stack_size);
#else
  if (!_setjmp(current->place)) _longjmp(scheduler_place, 1);
#endif
}

inline void start() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
  body();
  current->done = true;
  to_scheduler();
}

inline void resume(Fiber& fiber) {
  current = &fiber;
  threadIdx = {fiber.thread, 0, 0};
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack.get(), STACK);
  swapcontext(&scheduler, &fiber.context);
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#else
  if (_setjmp(scheduler_place)) return;
  if (std::exchange(fiber.started, true)) _longjmp(fiber.place, 1);
  setcontext(&fiber.context);
#endif
}

// No thread gets more than one barrier ahead of another, so the sum of arrivals tells whether all have come.
inline bool may_run(const Fiber& fiber) {
  return !fiber.done && barriers >= fiber.barriers * fibers.size() &&
         exchanges[fiber.thread / 32].arrivals >= fiber.collectives * 32;
}

inline bool run_block(unsigned threads, std::mt19937& random) {
  fibers.resize(threads);
  exchanges.assign(threads / 32, Exchange());
  barriers = 0;
  std::vector<unsigned> turns(threads);
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    turns[i] = fiber.thread = i;
    fiber.started = fiber.done = false;
    fiber.barriers = fiber.collectives = 0;
    if (!fiber.stack) fiber.stack.reset(new char[STACK]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, start, 0);
  }
  for (size_t left = threads; left > 0;) {
    std::shuffle(turns.begin(), turns.end(), random);
    bool progress = false;
    for (unsigned i : turns) {
      if (!may_run(fibers[i])) continue;
      resume(fibers[i]);
      left -= fibers[i].done;
      progress = true;
    }
    if (!progress) {
      failure = "some threads wait for others that never come";
      return false;
    }
  }
  return true;
}

// Hands `count` words to the other lanes and returns what all of them handed over.
inline const unsigned (&exchange(const unsigned* words, int count))[32][6] {
  Exchange& own = exchanges[current->thread / 32];
  auto& half = own.words[current->collectives++ % 2];
  memcpy(half[current->thread % 32], words, count * sizeof(unsigned));
  ++own.arrivals;
  to_scheduler();
  return half;
}

template <typename... Arguments, size_t... Places>
void call(void (*kernel)(Arguments...), void** arguments, std::index_sequence<Places...>) {
  kernel(*static_cast<Arguments*>(arguments[Places])...);
}

template <typename... Arguments>
const char* launch(void (*kernel)(Arguments...), void** arguments, const unsigned* grid, const unsigned* block,
                   size_t shared, unsigned seed) {
  static void (*typed)(Arguments...);
  static void** given;
  typed = kernel;
  given = arguments;
  body = [] { call(typed, given, std::index_sequence_for<Arguments...>()); };
  failure = nullptr;
  std::mt19937 random(seed);
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {block[0], block[1], block[2]};
  for (unsigned z = 0; z < grid[2]; ++z) {
    for (unsigned y = 0; y < grid[1]; ++y) {
      for (unsigned x = 0; x < grid[0]; ++x) {
        blockIdx = {x, y, z};
        // As large as was asked for, and full of NaN.
        std::unique_ptr<unsigned char[]> memory(new unsigned char[shared]);
        memset(memory.get(), 0xff, shared);
        dynamic_shared = memory.get();
        if (!run_block(block[0], random)) return failure;
      }
    }
  }
  return nullptr;
}

}  // namespace emulation

inline void __syncthreads() {
  ++emulation::current->barriers;
  ++emulation::barriers;
  emulation::to_scheduler();
}

inline float __shfl_xor_sync(unsigned, float value, int mask) {
  unsigned word;
  memcpy(&word, &value, 4);
  const auto& all = emulation::exchange(&word, 1);
  memcpy(&value, all[(threadIdx.x % 32) ^ mask], 4);
  return value;
}

template <typename T>
inline T __ldg(const T* place) {
  if (reinterpret_cast<uintptr_t>(place) % sizeof(T) != 0) emulation::failure = "a load is not aligned";
  return *place;
}

inline float __uint_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  memcpy(&bits, &value, 4);
  return bits;
}

inline float half_to_float(unsigned short bits) {
  _Float16 value;
  memcpy(&value, &bits, 2);
  return value;
}

inline unsigned short float_to_half(float value) {
  const _Float16 rounded = value;
  unsigned short bits;
  memcpy(&bits, &rounded, 2);
  return bits;
}

// The kernels may not fetch what no row holds; reading a byte lets the sanitizer see it.
inline void prefetch(const void* line) {
  volatile char byte = *static_cast<const char*>(line);
  (void)byte;
}

// The layout of fragments is that of the PTX manual for mma.m16n8k16: per lane two rows of `a` and of `sum`, one
// column of `b`, and pairs of neighbours in each register.
template <typename ToFloat>
inline void multiply_any(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2], ToFloat to_float) {
  const unsigned words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const auto& all = emulation::exchange(words, 6);
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const unsigned left = all[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
      const unsigned right = all[column * 4 + k % 8 / 2][4 + k / 8];
      sum[i] += to_float(left >> (16 * (k % 2)) & 0xffff) * to_float(right >> (16 * (k % 2)) & 0xffff);
    }
  }
}

inline void multiply_half(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  multiply_any(sum, a, b, [](unsigned bits) { return half_to_float(static_cast<unsigned short>(bits)); });
}

inline void multiply_bfloat(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  multiply_any(sum, a, b, [](unsigned bits) { return __uint_as_float(bits << 16); });
}
