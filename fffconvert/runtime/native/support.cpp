#include "support.h"

#include <atomic>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

#include "cmm.h"

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#endif

namespace {

typedef void gomp_parallel_fn(void (*)(void*), void*, unsigned threads, unsigned flags);
std::atomic<gomp_parallel_fn*> gomp_parallel{nullptr};

struct Parts {
    void (*run)(void*, int64_t);
    void* data;
    int64_t count;
    std::atomic<int64_t> next{0};
};

// Each thread takes parts until none is left, so that all is done however many threads there really are.
void take_parts(void* shared) {
    auto& parts = *static_cast<Parts*>(shared);
    for (int64_t part; (part = parts.next++) < parts.count;) parts.run(parts.data, part);
}

#if defined(__linux__)
// An OpenMP pool does not survive a fork; the child takes threads of its own.
const int registered = pthread_atfork(nullptr, nullptr, [] { gomp_parallel = nullptr; });
#endif

// The pool of the runtime that called this thread, if it lent one.
thread_local fff::InThreads::Run* lent = nullptr;
thread_local void* lent_pool = nullptr;

struct Buffer {
    void* data = nullptr;
    size_t bytes = 0;
    ~Buffer() { std::free(data); }
};

}  // namespace

void fff_set_gomp_parallel(void* function) {
    gomp_parallel = reinterpret_cast<gomp_parallel_fn*>(function);
}

namespace fff {

void parallel(int64_t count, void (*run)(void*, int64_t), void* data) {
    Parts parts{run, data, count};
    if (count == 1) return take_parts(&parts);
    if (lent) return lent(lent_pool, count, take_parts, &parts);
    if (auto* pool = gomp_parallel.load()) return pool(take_parts, &parts, unsigned(count), 0);
    std::vector<std::thread> threads;
    for (int64_t i = 1; i < count; i++) threads.emplace_back(take_parts, &parts);
    take_parts(&parts);
    for (auto& thread : threads) thread.join();
}

InThreads::InThreads(Run* run, void* pool) {
    lent = run;
    lent_pool = pool;
}

InThreads::~InThreads() { lent = nullptr; }

void* scratch(Purpose purpose, size_t bytes) {
    thread_local Buffer buffers[int(Purpose::counts) + 1];
    Buffer& buffer = buffers[int(purpose)];
    if (buffer.bytes < bytes) {
        std::free(buffer.data);
        buffer.bytes = (bytes + bytes / 2 + 63) / 64 * 64;
        buffer.data = std::aligned_alloc(64, buffer.bytes);
        if (!buffer.data) {
            buffer.bytes = 0;
            throw std::bad_alloc();
        }
    }
    return buffer.data;
}

void expect_writes(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t huge = 2 << 20;
    if (bytes < 2 * huge) return;
    uintptr_t start = (uintptr_t(data) + huge - 1) & ~(huge - 1), end = (uintptr_t(data) + bytes) & ~(huge - 1);
    madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}

}  // namespace fff
