// Can this model be prefilled by layer groups and evicted? Asked of a context whose caches have a few cells only.
#pragma once

#include "state/context.h"

#include <string>

// "" or the reason why not
std::string llama_snapkv_check_support(llama_model & model, llama_context_params cparams, const llama_snapkv_params & params);

// "" or the reason why sequences of a context like this cannot recall rows
std::string llama_snapkv_check_recall(const llama_snapkv_params & params, uint32_t n_seq_max, bool kv_unified);

// "" or the reason why parameters that are right cannot be those of a context with this memory
std::string llama_snapkv_check_memory(const llama_model & model, const llama_snapkv_memory & mem, const llama_snapkv_params & params);
