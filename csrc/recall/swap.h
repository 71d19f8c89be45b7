// Rows of the vault, written over others in the cache: the vault's bytes.
#pragma once

#include "recall/rank.h"

#include "llama-kv-cache.h"

#include "ggml-cpp.h"

#include <cstdint>
#include <map>
#include <vector>

class llama_context;

class llama_snapkv_swap {
public:
    // cell0: the first of the sequence's kept rows. all memory that it takes is asked for here: throws std::runtime_error or std::bad_alloc
    llama_snapkv_swap(llama_context & ctx, llama_kv_cache & base, llama_seq_id seq_id, const llama_snapkv_vault & vault, const llama_snapkv_ranked & ranked, uint32_t cell0);

    // one row after the other where the cache is in host memory; on a device, all at once, and a node for each tensor puts them into their
    // places. bytes that were copied
    size_t run();

private:
    // of consecutive cached layers
    struct on_device {
        ggml_backend_t backend;
        uint32_t ic0;
        uint32_t ic1;
        ggml_context_ptr gctx;
        ggml_backend_buffer_ptr buffer;
        ggml_tensor * rows = nullptr;    // F32 [bytes/4]
        ggml_tensor * targets = nullptr; // I64, of all changes
        ggml_cgraph * gf = nullptr;
        std::vector<int64_t> at;
    };

    void plan(uint32_t ic0, uint32_t ic1, ggml_backend_buffer_type_t buft);
    ggml_tensor * tensor(uint32_t ic, bool is_v) const;
    size_t head_bytes(uint32_t ic, bool is_v) const;
    size_t offset(uint32_t ic) const; // of a layer's rows
    uint32_t cell(uint32_t ic) const;
    void write_host(uint32_t ic);

    llama_context & ctx;
    llama_kv_cache & base;
    const llama_seq_id seq_id;
    const llama_snapkv_vault & vault;
    const llama_snapkv_ranked & ranked;
    const uint32_t cell0;
    std::vector<uint32_t> on_host; // layers
    std::vector<on_device> devices;
};
