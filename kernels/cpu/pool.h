// The process's threads for kernels. A worker spins for a moment after its last work and then
// sleeps, so that steps which follow one another start at once and an idle engine costs nothing.
// Work is cut into small pieces which whoever is free takes: a worker that has lost its core to
// another process delays the others by the one piece that it holds.
#pragma once

#include <cstddef>
#include <type_traits>

namespace pool {

// Threads that take part, the caller included; 0: one for each core that this process may use.
// The workers start with the first work after it.
void set_size(int n_threads);
int size();

// Calls piece(context, index, thread) for each index below n, in any order and at the same time;
// thread is below size(). At most n_threads take part (0: all). Inside a piece, and while another
// thread has the pool, it runs on the calling thread alone. A piece must not throw.
using Piece = void (*)(const void *context, size_t index, int thread);
void run(size_t n, int n_threads, Piece piece, const void *context);

// The next run will read this: workers that wait for it bring it into their cache. A hint; nothing
// need be there.
void will_read(const void *data, size_t n_bytes);

template <class Work>
void run(size_t n, const Work &work) {
    run(
        n, 0,
        [](const void *context, size_t index, int thread) {
            const Work &work = *static_cast<const Work *>(context);
            if constexpr (std::is_invocable_v<Work, size_t, int>)
                work(index, thread);
            else
                work(index);
        },
        &work);
}

// work(first, last) for ranges of at most `grain` out of 0..n.
template <class Work>
void ranges(size_t n, size_t grain, const Work &work) {
    run((n + grain - 1) / grain, [&](size_t piece) {
        size_t first = piece * grain, last = first + grain;
        work(first, last < n ? last : n);
    });
}

}  // namespace pool
