// The states of a sequence's recurrent layers, out of the device's memory and back into it.
#pragma once

#include "upstream/snapkv-states.h"

#include "state/context.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

// llama.cpp's tensors of the states, each with a row for each of its cells, in the order of a state's bytes
std::vector<ggml_tensor *> llama_snapkv_state_tensors(const llama_memory_recurrent & recr);

// row of these tensors in which a sequence has its states
size_t llama_snapkv_state_row(const llama_memory_recurrent & recr, llama_seq_id seq_id);

// a row for a sequence in the place of the one it has, if it has one, for the state before a position. throws std::runtime_error
size_t llama_snapkv_new_state_row(llama_memory_recurrent & recr, llama_seq_id seq_id, llama_pos pos);

// bytes of a sequence's states: for each recurrent layer, in their order, its rows in llama.cpp's memory (of convolutions, of the
// recurrence, of the third kind that some models have)
size_t llama_snapkv_state_bytes(const llama_memory_recurrent & recr);

// room for the state before a position. throws std::bad_alloc
std::shared_ptr<llama_snapkv_kept_state> llama_snapkv_make_state(const llama_memory_recurrent & recr, llama_pos pos);

// one whose data is the caller's, as memory of ours. throws std::bad_alloc
llama_snapkv_kept_state_ptr llama_snapkv_own_state(const llama_memory_recurrent & recr, llama_snapkv_kept_state_ptr state);

// layers from il0 to il1 - 1 of a sequence that has a state
void llama_snapkv_read_state(const llama_memory_recurrent & recr, llama_seq_id seq_id, int32_t il0, int32_t il1, llama_snapkv_kept_state & state);

// one that is not in memory of the sequence's own, such as that of a copied sequence, is copied there. throws std::runtime_error, std::bad_alloc
void llama_snapkv_own_memory(llama_memory_recurrent & recr, llama_seq_id seq_id);

// in the place of what the sequence's recurrent layers hold. throws std::runtime_error
void llama_snapkv_write_state(llama_memory_recurrent & recr, llama_seq_id seq_id, const llama_snapkv_kept_state & state);

// of a sequence, in host memory: those of its vault, too
uint64_t llama_snapkv_kept_bytes(const llama_snapkv & sk, const llama_snapkv_memory & mem, llama_seq_id seq_id);
