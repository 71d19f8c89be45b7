// The last rows of the sliding-window layers, which the vault keeps with each segment: to go on from its end, these layers
// need their window before it.
#pragma once

#include "state/context.h"

// rows of positions before end, as far back as the cache has them and n_max at most. they become the segment's
void llama_snapkv_save_tail(const llama_kv_cache & swa, llama_seq_id seq_id, uint32_t end, uint32_t n_max, llama_snapkv_vault::segment & seg);

// the last n_swa rows before end, or all, into an empty sequence of the cache. false if it has no cells for them
bool llama_snapkv_load_tail(llama_kv_cache & swa, llama_seq_id seq_id, uint32_t end, uint32_t n_swa, const llama_snapkv_vault::tail & tail);

// bytes of so many rows
size_t llama_snapkv_tail_bytes(const llama_kv_cache & swa, uint32_t n_rows);
