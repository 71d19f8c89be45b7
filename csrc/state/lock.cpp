#include "state/lock.h"

#include "state/context.h"

#include "llama-context.h"
#include "llama-impl.h"

#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <vector>

namespace {

struct lock {
    const llama_context * ctx;
    const llama_memory_i * memory;
    llama_seq_id seq_id;
    bool all;
};

// few: one for each prefill of this process that has called back. the functions that ask know a context, or only its memory
std::mutex mutex;
std::vector<lock> locks;

// that of a context, or of what has this memory; seq_id -1: there is none
lock find(const llama_context * ctx, const llama_memory_i * memory) {
    const std::lock_guard<std::mutex> guard(mutex);
    for (const lock & l : locks) {
        if ((ctx && l.ctx == ctx) || (memory && l.memory == memory)) {
            return l;
        }
    }
    return { nullptr, nullptr, -1, false };
}

std::string reason(const lock & l, llama_seq_id seq_id) {
    if (l.seq_id >= 0 && l.all) {
        return format("sequence %d is being prefilled: until that has ended, the context may be used within on_yield only", l.seq_id);
    }
    if (l.seq_id >= 0 && (seq_id < 0 || seq_id == l.seq_id)) {
        return format("sequence %d is being prefilled: until that has ended, other sequences may be used, but not this one, nor all together, nor for another prefill", l.seq_id);
    }
    return "";
}

bool refuses(const lock & l, llama_seq_id seq_id) {
    const std::string error = reason(l, seq_id);
    if (!error.empty()) {
        llama_snapkv_set_error(error);
    }
    return !error.empty();
}

} // namespace

llama_snapkv_lock::llama_snapkv_lock(const llama_context & ctx, llama_seq_id seq_id, bool all) {
    const std::lock_guard<std::mutex> guard(mutex);
    locks.push_back({ &ctx, ctx.get_memory(), seq_id, all });
    this->ctx = &ctx;
}

llama_snapkv_lock::~llama_snapkv_lock() {
    const std::lock_guard<std::mutex> guard(mutex);
    // a context is called back from within once
    locks.erase(std::find_if(locks.begin(), locks.end(), [&](const lock & l) { return l.ctx == ctx; }));
}

std::string llama_snapkv_locked(const llama_context & ctx, llama_seq_id seq_id) {
    return reason(find(&ctx, nullptr), seq_id);
}

bool llama_snapkv_refuses(const llama_context & ctx, llama_seq_id seq_id) {
    return refuses(find(&ctx, nullptr), seq_id);
}

bool llama_snapkv_refuses_free(const llama_context * ctx) {
    return ctx && refuses(find(ctx, nullptr), -1);
}

bool llama_snapkv_refuses_batch(const llama_context * ctx, const llama_batch & batch) {
    const lock l = find(ctx, nullptr);
    for (int32_t i = 0; l.seq_id >= 0 && i < batch.n_tokens; ++i) {
        const int32_t n = batch.seq_id ? batch.n_seq_id[i] : 1;
        for (int32_t j = 0; j < n; ++j) {
            if (refuses(l, batch.seq_id ? batch.seq_id[i][j] : 0)) {
                return true;
            }
        }
    }
    return false;
}

bool llama_snapkv_refuses_change(const llama_memory_i * memory, llama_seq_id seq_id) {
    return refuses(find(nullptr, memory), seq_id);
}

void llama_snapkv_check_state(const llama_memory_i * memory, llama_seq_id seq_id) {
    if (refuses(find(nullptr, memory), seq_id)) {
        throw std::runtime_error(llama_snapkv_error());
    }
}
