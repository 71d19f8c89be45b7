// Work that falls into parts, on several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

// fn(i, thread) for each i < n, in any order; thread: below n_threads. the calling thread is one of n_threads, and asks between two parts whether to stop. false: it was told
// to, and some parts are not done. what fn throws is thrown here, when all threads have ended
bool llama_snapkv_each(uint32_t n_threads, size_t n, const std::function<void(size_t, uint32_t)> & fn, const std::function<bool()> & stops);
