// Selective prefill: which rows of the prompt later layers compute, and from where on, by the votes of the layers before. A prompt's
// rows differ in what they do for the layers to come: those that nobody looks at need no hidden state any more. Related: FastKV (arXiv
// 2502.01068), which gives later layers a share of the rows; CLAA (arXiv 2602.16054), which lets several layers vote; ASL (arXiv
// 2601.07667), which waits until their ranks have settled. Positions stay those of the prompt.
#pragma once

#include "evict/positions.h"
#include "state/task.h"

#include <cstdint>
#include <vector>

class llama_snapkv_selection {
public:
    // n_tail: rows at the end that later layers need in any case
    llama_snapkv_selection(const llama_snapkv_params & params, const llama_snapkv_task & task, uint32_t n_tail);

    // are votes counted, for a selection that is still to come?
    bool is_open() const { return open; }

    // votes [n_prefix] of a KV head; a layer's heads come together, and layers in their order
    void add(uint32_t ic, const std::vector<float> & votes);

    // after n_layers of all: choose the rows, unless it is too early, or too unsettled. true: they are chosen, and it is closed
    bool choose(int32_t n_layers, int32_t n_layers_all);

    // ascending
    const std::vector<int32_t> & rows() const { return chosen; }

    // of the newest layer's votes, the share of rows that the layers before would have chosen; 0 before the second layer
    double get_settled() const { return settled; }

    // values of rows that a layer has [n_prefix], as of all rows of the prompt, with 0 for the others
    std::vector<float> spread(const std::vector<float> & values) const;

    static constexpr uint32_t RUN = 32; // rows stay with their neighbours, as a row alone says little to those after it

private:
    void close_layer();
    std::vector<int32_t> best() const;

    const llama_snapkv_params & params;
    const llama_snapkv_task & task;
    const uint32_t n_all; // rows of the prompt
    uint32_t n_wanted;    // rows to choose
    std::vector<bool> stays; // by run

    bool open;
    uint32_t ic_newest = 0;
    std::vector<double> newest; // by run, votes of a layer whose heads are coming
    std::vector<double> votes;  // by run, of the layers before; the earlier, the less they count
    bool any_counted = false;
    double settled = 0.0;
    std::vector<int32_t> chosen;
};
