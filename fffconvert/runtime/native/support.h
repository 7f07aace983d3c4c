// What the kernels of all instruction sets share. Compiled once, for the baseline: a function that two
// translation units both emitted could be kept in the version that the processor lacks.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fff {

// Run parts 0 … count - 1, in threads of torch's own pool where there is one.
void parallel(int64_t count, void (*run)(void* data, int64_t part), void* data);

// While it lives, this thread's `parallel` runs in another pool: `run` calls take(parts) about `count` times at once.
struct InThreads {
    using Run = void(void* pool, int64_t count, void (*take)(void*), void* parts);
    InThreads(Run* run, void* pool);
    ~InThreads();
    InThreads(const InThreads&) = delete;
};

// Memory of the calling thread for one purpose, kept from call to call; aligned to a cache line.
enum class Purpose { scores, order, sorted, block_items, block_spare, block_x, block_y, values, hidden, terms, factors, counts };
void* scratch(Purpose purpose, size_t bytes);

// Ask for huge pages under a large output that was just allocated: its first touch costs more than the kernel.
void expect_writes(void* data, size_t bytes);

}  // namespace fff
