#include "snapkv-alloc.h"

#include "llama-impl.h"

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
