// What queries give the rows of a vault, counted on the CPU where the vault lies.
#pragma once

#include "snapkv.h"

#include "recall/lanes.h"
#include "vault/vault.h"

#include <cstdint>
#include <utility>
#include <vector>

// of one KV head. to be used again, so that its memory is there already
class llama_snapkv_votes_of_head {
public:
    // joined over the queries, mean over the query heads, pooled: each query's attention over the vault's rows, and no others.
    // where the vault has more than n_asked rows, the queries ask its index (vault/index.h), and then so many rows of the stretches that
    // might get most. a row of another stretch gets what its mean key would
    void count(const llama_snapkv_vault & vault, uint32_t ic, int64_t head, const llama_snapkv_lanes & lanes, uint32_t n_asked, const llama_snapkv_params & params);

    // rows that were asked, and those that are pooled with them: [begin, end), ascending, apart
    const std::vector<std::pair<uint32_t, uint32_t>> & get_runs() const { return runs; }

    float of_asked(uint32_t pos) const { return pooled[pos]; } // of a row of these runs
    float of_any(uint32_t pos) const;

    size_t bytes() const;

private:
    void ask_index(const llama_snapkv_vault & vault, uint32_t ic, int64_t head, const llama_snapkv_lanes & lanes, uint32_t n_asked);
    void pool(uint32_t begin, uint32_t end, float * out) const;

    llama_snapkv_params params;
    uint32_t n = 0; // rows
    std::vector<uint8_t> asked;  // [n_stretches]
    std::vector<float> of_mean; // [lanes, n_stretches]
    std::vector<float> rest;     // [lanes, stretches that are not asked]
    std::vector<float> of_stretch; // [n_stretches]
    std::vector<uint32_t> order;
    std::vector<float> of_rows;  // [lanes, rows that are asked]
    std::vector<float> own;      // [n] votes before pooling
    std::vector<float> pooled;   // [n], where rows were asked
    std::vector<std::pair<uint32_t, uint32_t>> runs;
};
