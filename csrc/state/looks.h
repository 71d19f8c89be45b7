// The states of recurrent layers before guesses are looked at: wrong ones are taken back with them. They lie beside llama.cpp's own,
// on the same devices.
#pragma once

#include "upstream/snapkv-alloc.h"

#include "llama.h"

#include "ggml-cpp.h"

#include <cstddef>
#include <cstdint>
#include <vector>

class llama_memory_recurrent;

class llama_snapkv_looks {
public:
    // room for one state of each sequence. throws std::runtime_error, std::bad_alloc
    llama_snapkv_looks(const llama_memory_recurrent & recr, uint32_t n_seqs);

    // a row of each of llama.cpp's tensors, put aside for a sequence; what it is the state of, the guard knows. throws std::bad_alloc
    void keep(const llama_memory_recurrent & recr, llama_seq_id seq_id, size_t row) const;

    // what was put aside, in a row of each of llama.cpp's tensors. throws std::bad_alloc
    void bring_back(const llama_memory_recurrent & recr, llama_seq_id seq_id, size_t row) const;

private:
    void copy(const llama_memory_recurrent & recr, llama_seq_id seq_id, size_t row, bool is_back) const;

    std::vector<llama_snapkv_gctx> ctxs;
    std::vector<ggml_backend_buffer_ptr> bufs;
    std::vector<ggml_tensor *> kept; // [row, n_seqs], in the order of llama_snapkv_state_tensors()
};
