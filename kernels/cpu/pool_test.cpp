// The pool under ThreadSanitizer, without Python: every piece once, its writes seen by the caller;
// from several threads, inside a piece, with changing sizes, after its workers fell asleep, and
// with hints of what comes.
//   g++ -std=c++17 -O1 -g -fsanitize=thread kernels/cpu/pool_test.cpp kernels/cpu/pool.cpp
#include "pool.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

static std::atomic<int> n_failed{0};

static void expect_each_once(size_t n) {
    std::vector<int> seen(n, 0);  // plain values: an unseen write or a second one is a race
    pool::run(n, [&](size_t i) { seen[i]++; });
    for (int times : seen) n_failed += times != 1;
}

static void expect_each_once_inside(size_t n) {
    std::vector<std::vector<int>> seen(n, std::vector<int>(7, 0));
    pool::run(n, [&](size_t i) {
        pool::ranges(7, 2, [&, i](size_t first, size_t last) {
            for (size_t j = first; j < last; j++) seen[i][j]++;
        });
    });
    for (auto &inner : seen)
        for (int times : inner) n_failed += times != 1;
}

// Steps that depend on one another, as a layer's do: a step reads what another thread wrote before.
static void expect_in_order(size_t n_steps) {
    std::vector<size_t> from(100, 0), to(100);
    for (size_t step = 0; step < n_steps; step++) {
        pool::will_read(from.data(), from.size() * sizeof from[0]);
        pool::run(to.size(), [&](size_t i) { to[i] = from[(i + 37) % from.size()] + 1; });
        from.swap(to);
    }
    for (size_t value : from) n_failed += value != n_steps;
}

int main() {
    for (int n_threads : {4, 2, 1, 3, 8}) {
        pool::set_size(n_threads);
        for (size_t n : {0, 1, 2, 5, 64, 1000}) expect_each_once(n);
        expect_each_once_inside(20);
        for (int i = 0; i < 200; i++) expect_each_once(i % 9);
    }
    pool::set_size(4);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // a hundred times its spinning
    expect_in_order(300);
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; caller++)
        callers.emplace_back([] {
            for (int i = 0; i < 100; i++) expect_each_once(50);
        });
    for (std::thread &caller : callers) caller.join();
    std::printf("pool: %d failures\n", n_failed.load());
    return n_failed != 0;
}
