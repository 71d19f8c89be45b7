// Which rows each KV head keeps, by its votes: as the device has chosen them, or ranked here where positions are protected or the
// number of rows depends on how much of the attention mass they hold.
#pragma once

#include "evict/positions.h"
#include "evict/scorer.h"
#include "evict/selection.h"
#include "staging/layer.h"
#include "state/task.h"

#include <cstdint>
#include <vector>

class llama_snapkv_chooser {
public:
    llama_snapkv_chooser(const llama_snapkv_params & params, const llama_snapkv_task & task, const llama_snapkv_positions & positions, const llama_snapkv_selection & selection) :
        params(params), task(task), positions(positions), selection(selection) {
    }

    // does choosing need the votes of fused ops, too?
    bool reads_votes() const { return params.keep_scores || ranks(); }

    struct choice {
        std::vector<int32_t> rows;              // [n_prefix_kept_max, n_head_kv], ascending for each head
        std::vector<float> coverage;            // [n_head_kv]
        std::vector<std::vector<float>> scores; // for each head [n_prefix] of all rows, if they are to be kept
    };
    // layers come in order. throws std::invalid_argument
    choice choose(const llama_snapkv_layer & layer, const llama_snapkv_ballot & ballot, uint32_t n_seen);

    // where rows may be fewer: the fewest, from the budget's on, that hold the share of the attention mass which the parameters ask
    // for; all if even these do not
    uint32_t rows_for_coverage() const;
    // of a KV head the n_rows best rows, ascending, and their coverage
    std::vector<int32_t> best(uint32_t ic, uint32_t head, uint32_t n_rows) const;
    float coverage(uint32_t ic, uint32_t head, uint32_t n_rows) const { return rankings[ic][head].held[n_rows]; }

private:
    // rows of a KV head by rank, and the share of the attention mass on the first 0, 1, ... of them and the window
    struct ranking {
        std::vector<int32_t> order;
        std::vector<float> held;
    };

    bool ranks() const { return task.prompt.n_protected > 0 || task.n_kept < task.n_kept_max; }
    ranking rank(const llama_snapkv_layer & layer, int64_t head, const std::vector<float> & pooled, const std::vector<float> & mass) const;

    const llama_snapkv_params & params;
    const llama_snapkv_task & task;
    const llama_snapkv_positions & positions;
    const llama_snapkv_selection & selection;

    std::vector<std::vector<ranking>> rankings; // by cached layer and KV head; empty unless ranks()
};
