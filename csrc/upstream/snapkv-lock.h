// What a caller may not do to a context that has called it back from within a prefill. Included by the patched llama-context.cpp,
// whose functions ask this first thing.
#pragma once

#include "llama.h"

struct llama_memory_i;

// true, with the reason in llama_snapkv_last_error(), where the function has to do nothing and return
bool llama_snapkv_refuses_free(const llama_context * ctx);                                  // llama_free
bool llama_snapkv_refuses_batch(const llama_context * ctx, const llama_batch & batch);      // llama_decode, llama_encode
bool llama_snapkv_refuses_change(const llama_memory_i * memory, llama_seq_id seq_id);       // llama_memory_*; negative: of all sequences

// states that are read or written: throws std::runtime_error
void llama_snapkv_check_state(const llama_memory_i * memory, llama_seq_id seq_id);
