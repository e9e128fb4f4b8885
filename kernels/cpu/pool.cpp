#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>

namespace pool {
namespace {

// Longer than nearly every gap between two steps of a token on a slow core (50 left eight of 70
// asleep, and waking them took 3 to 18 % of the time), far shorter than a scheduler's time slice.
constexpr std::chrono::microseconds SPIN{200};

// What a worker fetches before it looks again whether it is called: below a microsecond.
constexpr uintptr_t FETCH_BYTES = 2048;

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

// True as soon as `ready` is, false when SPIN has passed.
template <class Ready>
bool spin(const Ready &ready) {
    auto until = std::chrono::steady_clock::now() + SPIN;
    do {
        for (int i = 0; i < 32; i++) {
            if (ready()) return true;
            relax();
        }
    } while (std::chrono::steady_clock::now() < until);
    return false;
}

thread_local bool inside = false;  // this thread is in a piece

int cores() {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
    return static_cast<int>(std::thread::hardware_concurrency());
}

struct Pool {
    std::mutex owner;  // held by the thread whose job is running
    std::atomic<int> n_threads{0};
    int n_started = 1;  // the caller counts

    // The job. Written only while `open` is false and `active` is 0.
    Piece piece = nullptr;
    const void *context = nullptr;
    size_t n = 0;
    int limit = 0;
    std::atomic<size_t> next{0};
    std::atomic<bool> open{false};
    // Workers that may be looking at the job. One that is late adds itself, finds the job closed
    // (or the next one open, and helps there) and leaves.
    std::atomic<int> active{0};

    // Addresses that the next job will read first: idle workers bring them into the cache. Both may
    // be changed while they look, so they may fetch what is of no use, which does no harm.
    std::atomic<uintptr_t> ahead{0}, ahead_end{0};

    std::atomic<unsigned> generation{0};
    std::mutex sleep;
    std::condition_variable wake, done;
    std::atomic<int> n_asleep{0};
    std::atomic<bool> caller_asleep{false};

    void take_pieces(int thread) {
        inside = true;
        for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;)
            piece(context, i, thread);
        inside = false;
    }

    void fetch_ahead() {
        uintptr_t end = ahead_end.load(std::memory_order_relaxed);
        if (ahead.load(std::memory_order_relaxed) >= end) return;
        uintptr_t at = ahead.fetch_add(FETCH_BYTES, std::memory_order_relaxed);
        for (uintptr_t line = at; line < std::min(end, at + FETCH_BYTES); line += 64)
            __builtin_prefetch(reinterpret_cast<const void *>(line), 0, 2);
    }

    void work(int thread) {
        for (unsigned seen = 0;;) {
            auto called = [&] {
                if (generation.load() != seen) return true;
                fetch_ahead();
                return false;
            };
            if (!spin(called)) {
                std::unique_lock<std::mutex> lock(sleep);
                n_asleep++;
                wake.wait(lock, [&] { return generation.load() != seen; });
                n_asleep--;
            }
            seen = generation.load();
            active++;
            if (open.load() && thread < limit) take_pieces(thread);
            if (--active == 0 && caller_asleep.load()) {
                std::lock_guard<std::mutex> lock(sleep);
                done.notify_all();
            }
        }
    }

    // Where no more can be had (a limit on processes or memory), the caller and those there are do.
    void start_workers() {
        try {
            for (; n_started < n_threads; n_started++)
                std::thread([this, thread = n_started] { work(thread); }).detach();
        } catch (const std::system_error &) {
        }
    }

    void run_job() {
        open.store(true);
        generation++;
        if (n_asleep.load()) {
            std::lock_guard<std::mutex> lock(sleep);
            wake.notify_all();
        }
        take_pieces(0);
        open.store(false);
        auto finished = [&] { return active.load() == 0; };
        if (spin(finished)) return;
        caller_asleep.store(true);
        {
            std::unique_lock<std::mutex> lock(sleep);
            done.wait(lock, finished);
        }
        caller_asleep.store(false);
    }
};

// Never destroyed: the workers outlive main. A forked child has none of them and starts its own.
Pool *current = nullptr;

Pool &get() {
    static std::once_flag once;
    std::call_once(once, [] {
        current = new Pool;
        current->n_threads = cores();
        pthread_atfork(nullptr, nullptr, [] {
            int n_threads = size();
            current = new Pool;
            current->n_threads = n_threads;
            inside = false;
        });
    });
    return *current;
}

void run_alone(size_t n, Piece piece, const void *context) {
    for (size_t i = 0; i < n; i++) piece(context, i, 0);
}

}  // namespace

void set_size(int n_threads) {
    Pool &pool = get();
    std::lock_guard<std::mutex> lock(pool.owner);
    pool.n_threads = n_threads > 0 ? n_threads : cores();
}

int size() { return get().n_threads; }

void will_read(const void *data, size_t n_bytes) {
    Pool &pool = get();
    uintptr_t first = reinterpret_cast<uintptr_t>(data);
    pool.ahead_end.store(0);
    pool.ahead.store(first);
    pool.ahead_end.store(first + n_bytes);
}

void run(size_t n, int n_threads, Piece piece, const void *context) {
    if (n == 0) return;
    Pool &pool = get();
    if (inside || n == 1 || n_threads == 1 || pool.n_threads == 1)
        return run_alone(n, piece, context);
    std::unique_lock<std::mutex> owner(pool.owner, std::try_to_lock);
    if (!owner.owns_lock()) return run_alone(n, piece, context);
    pool.start_workers();
    pool.piece = piece;
    pool.context = context;
    pool.n = n;
    pool.limit = n_threads ? std::min(n_threads, size()) : size();
    pool.next.store(0);
    pool.run_job();
}

}  // namespace pool
