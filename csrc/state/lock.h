// While a prefill has called its caller back, the context belongs to the prefill: a part of it, or all.
#pragma once

#include "upstream/snapkv-lock.h"

#include <string>

class llama_snapkv_lock {
public:
    // seq_id: is prefilled. all: the callback comes from the middle of a computation, and nothing may be changed; else other
    // sequences may be used
    llama_snapkv_lock(const llama_context & ctx, llama_seq_id seq_id, bool all);
    ~llama_snapkv_lock();

    llama_snapkv_lock(const llama_snapkv_lock &) = delete;
    llama_snapkv_lock & operator=(const llama_snapkv_lock &) = delete;

private:
    const llama_context * ctx;
};

// "" or why a sequence, negative: the context as a whole, may not be changed now
std::string llama_snapkv_locked(const llama_context & ctx, llama_seq_id seq_id);

// the same; true sets llama_snapkv_last_error()
bool llama_snapkv_refuses(const llama_context & ctx, llama_seq_id seq_id);
