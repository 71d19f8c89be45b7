// Scoring and eviction of one layer group.
#pragma once

#include "evict/chooser.h"
#include "evict/packer.h"
#include "evict/positions.h"
#include "evict/scorer.h"
#include "graph/runner.h"
#include "staging/layer.h"
#include "staging/place.h"
#include "staging/staging.h"
#include "state/context.h"
#include "state/task.h"

#include "llama-kv-cache.h"

#include <vector>

class llama_snapkv_compressor {
public:
    llama_snapkv_compressor(llama_context & ctx, llama_snapkv & sk, llama_snapkv_runner & runner, const llama_snapkv_place & place,
            const llama_snapkv_staging & staging, const llama_snapkv_task & task, const llama_snapkv_positions & positions, llama_snapkv_selection & selection);

    // votes of the group's layers; appends the kept rows to record. throws std::runtime_error
    void score(const std::vector<llama_snapkv_layer> & layers, llama_snapkv_record & record);

    // votes of layers to come, for the selection. throws std::runtime_error
    void look(const std::vector<llama_snapkv_layer> & layers);

    // copies the rows that record names last into target, cells of the compact cache
    void evict(const std::vector<llama_snapkv_layer> & layers, const llama_snapkv_record & record, llama_kv_cache & base, const llama_kv_cache::slot_info & target);

    // when all layers are evicted: fewer prefix rows, if these hold the share of the attention mass which the parameters ask for.
    // packs those of the compact cache anew, and corrects the record. their number
    uint32_t shrink(llama_snapkv_record & record, llama_kv_cache & base, const llama_kv_cache::slot_info & target);

    // of all layers so far
    double get_coverage() const;
    double get_ratio_fused() const { return (double) n_fused / n_scored; }

private:
    llama_snapkv & sk;
    const llama_snapkv_staging & staging;
    const llama_snapkv_task & task;
    llama_snapkv_scorer scorer;
    llama_snapkv_chooser chooser;
    llama_snapkv_packer packer;
    llama_snapkv_selection & selection;

    uint32_t n_scored = 0;
    uint32_t n_fused = 0;
};
