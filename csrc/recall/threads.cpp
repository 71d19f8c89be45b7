#include "recall/threads.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

bool llama_snapkv_each(uint32_t n_threads, size_t n, const std::function<void(size_t, uint32_t)> & fn, const std::function<bool()> & stops) {
    std::atomic<size_t> next = 0;
    std::atomic<bool> stopped = false;
    std::exception_ptr failed;
    std::mutex mutex;
    const auto work = [&](uint32_t thread) {
        try {
            for (size_t i = next++; i < n && !stopped; i = next++) {
                if (thread == 0 && stops()) {
                    stopped = true;
                    return;
                }
                fn(i, thread);
            }
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            failed = std::current_exception();
            next = n;
        }
    };
    std::vector<std::thread> threads;
    try {
        for (uint32_t i = 1; i < std::min<size_t>(n_threads, n); ++i) {
            threads.emplace_back(work, i);
        }
    } catch (const std::system_error &) {
        // the machine has no more of them: those that there are do it
    }
    work(0);
    for (auto & thread : threads) {
        thread.join();
    }
    if (failed) {
        std::rethrow_exception(failed);
    }
    return !stopped;
}
