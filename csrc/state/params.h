// The settings of a context: are they right, and how many rows they make of a prompt.
#pragma once

#include "snapkv.h"

#include <cstdint>
#include <string>

// "" or what is wrong with the parameters and how to mend it
std::string llama_snapkv_check_params(const llama_snapkv_params & params);

// rows kept for each KV head of a prompt, the window included; n_prompt if nothing is to be evicted
uint32_t llama_snapkv_n_rows(const llama_snapkv_params & params, uint32_t n_prompt);

// the most rows that may be kept, if the budget's hold too little of the attention mass
uint32_t llama_snapkv_n_rows_max(const llama_snapkv_params & params, uint32_t n_prompt);

// rows of the window that vote, where no question is known
uint32_t llama_snapkv_n_voters(const llama_snapkv_params & params);
