// Rows into the compact cache: each KV head's own side by side, then the window.
#pragma once

#include "graph/runner.h"
#include "staging/layer.h"
#include "staging/place.h"
#include "staging/staging.h"
#include "state/task.h"

#include "llama-kv-cache.h"

#include <cstdint>
#include <vector>

class llama_snapkv_packer {
public:
    // a layer and the rows of it that stay
    struct chosen {
        llama_snapkv_layer layer;
        bool fused;                        // copied by the fused op
        const std::vector<int32_t> * rows; // [n_prefix_kept_max, n_head_kv]
    };

    llama_snapkv_packer(llama_context & ctx, llama_snapkv_runner & runner, const llama_snapkv_place & place, const llama_snapkv_staging & staging, const llama_snapkv_task & task) :
        ctx(ctx), runner(runner), place(place), staging(staging), task(task) {
    }

    // from the staging cache to target, cells of the compact cache. throws std::runtime_error
    void pack(const std::vector<chosen> & layers, llama_kv_cache & base, const llama_kv_cache::slot_info & target);

    // keep fewer rows of a layer than are packed in target: rows [n_rows, n_head_kv] are indices of these, ascending for each head
    void repack(int32_t il, uint32_t n_head_kv, const std::vector<uint32_t> & rows, uint32_t n_rows, llama_kv_cache & base, const llama_kv_cache::slot_info & target) const;

private:
    void copy_rows(ggml_context * gctx, ggml_cgraph * gf, const chosen & kept, ggml_tensor * src, ggml_tensor * dst, ggml_tensor * ids, int64_t cell0) const;

    llama_context & ctx;
    llama_snapkv_runner & runner;
    const llama_snapkv_place & place;
    const llama_snapkv_staging & staging;
    const llama_snapkv_task & task;
};
