#include "upstream/snapkv-alloc.h"

#include "llama-impl.h"

#ifndef _WIN32
#include <sys/resource.h>
#endif

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>

bool llama_snapkv_alloc_fails(const char * part) {
    const char * fail = getenv("SNAPKV_TEST_FAIL_ALLOC");
    return fail && strcmp(fail, part) == 0;
}

ggml_backend_buffer_ptr llama_snapkv_alloc_buffer(ggml_backend_buffer_type_t buft, size_t size, const char * part) {
    ggml_backend_buffer_ptr buf(llama_snapkv_alloc_fails(part) ? nullptr : ggml_backend_buft_alloc_buffer(buft, size));
    if (!buf) {
        throw std::runtime_error(format("out of memory: %.1f MiB for the prefill's %s on %s", size / 1048576.0, part, ggml_backend_buft_name(buft)));
    }
    return buf;
}

llama_snapkv_gctx::llama_snapkv_gctx(size_t size) :
    buffer(malloc(size)) {
    if (!buffer) {
        throw std::bad_alloc();
    }
    ctx.reset(ggml_init({ size, buffer.get(), /*.no_alloc =*/true }));
}

void llama_snapkv_require_memory(size_t size) {
    void * p = malloc(size);
    if (!p) {
        throw std::bad_alloc();
    }
    free(p);
}

void llama_snapkv_require_sched(size_t max_nodes) {
    static constexpr size_t MAX_SPLIT_INPUTS = 30; // GGML_SCHED_MAX_SPLIT_INPUTS
    const size_t per_node = 2 * MAX_SPLIT_INPUTS * (sizeof(ggml_tensor) + 4 * sizeof(int)) + 8 * ggml_tensor_overhead();
    llama_snapkv_require_memory(max_nodes * (per_node + LLAMA_SNAPKV_PLAN_BYTES_PER_NODE));
}

static size_t stack_bytes() {
#ifdef _WIN32
    return 1 << 20; // what linkers write into a program
#else
    rlimit limit;
    return getrlimit(RLIMIT_STACK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY ? limit.rlim_cur : 8 << 20;
#endif
}

void llama_snapkv_require_step(int n_threads) {
    static thread_local int n_started = 1; // threads wait for the next step of the one that has started them
    const size_t size = LLAMA_SNAPKV_STEP_BYTES + std::max(0, n_threads - n_started) * stack_bytes();
    try {
        llama_snapkv_require_memory(size);
    } catch (const std::bad_alloc &) {
        throw std::runtime_error(format("out of memory: %d thread(s) want %.0f MiB of room to compute in", n_threads, size / 1048576.0));
    }
    n_started = std::max(n_started, n_threads);
}
