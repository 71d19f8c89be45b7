// The threads of one threadgroup (Metal) or block (CUDA, HIP), for kernels that are compiled as C++. One runs at a time.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <ucontext.h>
#define GPU_THREADS_FIBERS
#endif

namespace gpu_threads {

static constexpr int LANES = 32; // that wait for one another in wait_for_lanes()

// A barrier that not all of its threads reach is an error
struct group {
    virtual ~group() = default;
    virtual void run(int n_threads, const std::function<void(int)> & body) = 0;
    virtual int thread() const = 0; // that calls

    void wait_for_all() { wait(0, n_threads); }
    // for those of the thread's own 32
    void wait_for_lanes() {
        const int first = thread() / LANES * LANES;
        wait(1 + first / LANES, std::min(LANES, n_threads - first));
    }
    // how often the thread's own 32 have waited
    int n_waits_of_lanes() const { return phase_of(1 + thread() / LANES); }

protected:
    virtual void wait(int barrier, int n) = 0;
    virtual int phase_of(int barrier) const = 0;

    struct barrier_state {
        int waiting = 0;
        int phase = 0;
    };
    void start(int n) {
        n_threads = n;
        barriers.assign(1 + (n + LANES - 1) / LANES, {});
    }
    int n_threads = 0;
    std::vector<barrier_state> barriers; // of all, then of each 32
};

inline thread_local group * current_group = nullptr;

// Threads of the operating system, for a race detector (-fsanitize=thread). Slow: a barrier wakes all of them
struct group_threads : group {
    void run(int n, const std::function<void(int)> & body) override {
        start(n);
        std::vector<std::thread> threads;
        for (int i = 0; i < n; ++i) {
            threads.emplace_back([this, &body, i] {
                current_group = this;
                index() = i;
                body(i);
            });
        }
        for (auto & thread : threads) {
            thread.join();
        }
    }
    int thread() const override { return index(); }

protected:
    void wait(int barrier, int n) override {
        std::unique_lock<std::mutex> lock(mutex);
        barrier_state & b = barriers[barrier];
        const int now = b.phase;
        if (++b.waiting == n) {
            b.waiting = 0;
            b.phase++;
            all.notify_all();
        } else {
            all.wait(lock, [&] { return b.phase != now; });
        }
    }
    int phase_of(int barrier) const override {
        std::unique_lock<std::mutex> lock(mutex);
        return barriers[barrier].phase;
    }

private:
    static int & index() {
        static thread_local int i = 0;
        return i;
    }
    mutable std::mutex mutex;
    std::condition_variable all;
};

#ifdef GPU_THREADS_FIBERS
// Fibers: each runs to the next barrier before another starts, in an order that is drawn anew again and again, so that a missing
// barrier shows
struct group_fibers : group {
    static constexpr size_t STACK = 64 * 1024;

    void run(int n, const std::function<void(int)> & body) override {
        start(n);
        this->body = &body;
        while ((int) fibers.size() < n) {
            fibers.push_back(std::make_unique<fiber>());
        }
        std::vector<int> order(n);
        std::iota(order.begin(), order.end(), 0);

        current_group = this;
        for (int i = 0; i < n; ++i) {
            getcontext(&fibers[i]->context);
            fibers[i]->context.uc_stack.ss_sp = fibers[i]->stack.get();
            fibers[i]->context.uc_stack.ss_size = STACK;
            fibers[i]->context.uc_link = &scheduler;
            fibers[i]->done = false;
            fibers[i]->barrier = -1;
            makecontext(&fibers[i]->context, (void (*)()) enter, 0);
        }
        for (int n_done = 0; n_done < n;) {
            std::shuffle(order.begin(), order.end(), rng);
            int n_ran = 0;
            for (const int i : order) {
                fiber & f = *fibers[i];
                if (f.done || (f.barrier >= 0 && barriers[f.barrier].phase == f.phase)) {
                    continue;
                }
                running = i;
                n_ran++;
                swapcontext(&scheduler, &f.context);
                n_done += f.done;
            }
            if (n_ran == 0) {
                printf("%d of %d threads wait for ever at a barrier\n", n - n_done, n);
                abort();
            }
        }
    }
    int thread() const override { return running; }

protected:
    void wait(int barrier, int n) override {
        fiber & f = *fibers[running];
        barrier_state & b = barriers[barrier];
        f.barrier = barrier;
        f.phase = b.phase;
        if (++b.waiting == n) {
            b.waiting = 0;
            b.phase++;
        }
        swapcontext(&f.context, &scheduler);
    }
    int phase_of(int barrier) const override { return barriers[barrier].phase; }

private:
    struct fiber {
        ucontext_t context;
        std::unique_ptr<char[]> stack{ new char[STACK] };
        bool done;
        int barrier; // where it waits; -1: nowhere yet
        int phase;   // of it
    };

    static void enter() {
        auto * self = (group_fibers *) current_group;
        const int i = self->running;
        (*self->body)(i);
        self->fibers[i]->done = true;
    }

    const std::function<void(int)> * body = nullptr;
    std::vector<std::unique_ptr<fiber>> fibers;
    ucontext_t scheduler;
    int running = 0;
    std::mt19937 rng{ 1 };
};
#endif

static inline std::unique_ptr<group> make_group(bool threads) {
#ifdef GPU_THREADS_FIBERS
    if (!threads) {
        return std::make_unique<group_fibers>();
    }
#endif
    (void) threads;
    return std::make_unique<group_threads>();
}

} // namespace gpu_threads
