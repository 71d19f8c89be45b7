// Selective prefill: which rows of the prompt later layers compute, and from where on. A prompt's rows differ in what they do for the layers
// to come: those that nobody will look at need no hidden state any more. Who looks where is asked of these layers themselves, ahead
// (prefill/select.cpp). What layers before have looked at does not count: they have it already, and their rows would take the places of those
// that are still wanted. Related: FastKV (arXiv 2502.01068), which gives later layers a share of the rows
// by the votes of those before; CLAA (arXiv 2602.16054), which lets several layers vote; ASL (arXiv 2601.07667), which waits until their
// ranks have settled. Positions stay those of the prompt.
#pragma once

#include "evict/positions.h"
#include "state/task.h"

#include <algorithm>
#include <cstdint>
#include <vector>

class llama_snapkv_selection {
public:
    // n_tail: rows at the end that later layers need in any case
    llama_snapkv_selection(const llama_snapkv_params & params, const llama_snapkv_task & task, uint32_t n_tail, uint32_t n_layers_all);

    // after n_layers, at a boundary of groups, with n_next layers at the next one: are votes of the layers to come wanted?
    bool wants_look(uint32_t n_layers, uint32_t n_next) const;

    // votes [n_prefix] of a KV head of a layer to come; a layer's heads come together
    void add(uint32_t ic, const std::vector<float> & votes);

    // after n_layers, of which the layers to come have been asked: choose the rows, unless it is too early, or too unsettled. true: they
    // are chosen, and it is closed
    bool choose(uint32_t n_layers);

    // ascending
    const std::vector<int32_t> & rows() const { return chosen; }

    // of the votes of the layers to come, the share on rows that would have been chosen when they were asked before, at most; 0 before they
    // were asked twice
    double get_settled() const { return settled; }

    // values of rows that a layer has [n_prefix], as of all rows of the prompt, with 0 for the others
    std::vector<float> spread(const std::vector<float> & values) const;

    static constexpr uint32_t RUN = 8; // rows stay with their neighbours, as a row alone says little to those after it

private:
    void close_layer();
    std::vector<int32_t> best() const;
    uint32_t step() const { return std::max(1u, n_layers_all / N_STEPS); }

    // of a model's layers, how many parts there are, after each of which votes are asked for again, and how often at most
    static constexpr uint32_t N_STEPS = 8;
    static constexpr uint32_t N_LOOKS = 4;

    const llama_snapkv_params & params;
    const llama_snapkv_task & task;
    const uint32_t n_layers_all;
    const uint32_t n_all; // rows of the prompt
    uint32_t n_wanted;    // rows to choose
    std::vector<bool> stays; // by run

    bool open;
    uint32_t n_looks = 0;
    uint32_t n_layers_looked = 0; // the last time
    uint32_t ic_newest = 0;
    std::vector<double> newest;  // by run, votes of a layer whose heads are coming
    std::vector<double> to_come; // by run, what the layer that wants it most gives it, of those that were asked
    std::vector<int32_t> before; // runs that were best the last time
    double settled = 0.0;
    std::vector<int32_t> chosen;
};
