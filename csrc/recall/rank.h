// Which rows of a vault an answer needs now, and which of those that it holds it needs no longer.
#pragma once

#include "snapkv.h"

#include "recall/queries.h"
#include "recall/votes.h"
#include "upstream/snapkv-guard.h"
#include "vault/vault.h"

#include <cstdint>
#include <functional>
#include <vector>

// a row of a KV head that takes the place of another
struct llama_snapkv_change {
    uint32_t head;
    uint32_t i;  // of the head's rows
    int32_t id;  // prompt position
};

// what a kept row is worth: the most that any votes gave it, faded with each recall since. for each cached layer [n_kept, n_head_kv] as
// its record has them
using llama_snapkv_worth = std::vector<std::vector<float>>;

// what is known of the rows of a record, and what a recall makes of it
struct llama_snapkv_ranked {
    llama_snapkv_record_ptr record;
    llama_snapkv_worth worth;
    std::vector<std::vector<llama_snapkv_change>> changes; // of each cached layer
    std::vector<uint8_t> rows; // of all changes: for each layer those of K, then those of V, in their order
    uint64_t bytes_votes = 0;  // that counting took, of all threads
    double seconds = 0.0;
};

class llama_snapkv_ranker {
public:
    // the vault stays as it is meanwhile, but for its index, which this makes. readers: of each cached layer, those that read its KV
    llama_snapkv_ranker(llama_snapkv_vault & vault, const llama_snapkv_params & params, std::vector<llama_snapkv_span> protected_spans,
            std::vector<std::vector<int32_t>> readers, uint32_t n_threads);

    // the index, and what the kept rows are worth: what the prompt's last tokens gave them. false: it was told to stop
    bool prepare(llama_snapkv_ranked & known, const std::function<bool()> & stops);

    // queries: of the answer's last tokens. known: as it was before, and then as it is after. false: it was told to stop
    bool rank(llama_snapkv_ranked & known, const llama_snapkv_queries & queries, const std::function<bool()> & stops);

    // of heads at most: rows that are asked one by one
    static uint32_t n_asked(const llama_snapkv_params & params, uint32_t n_kept);

private:
    llama_snapkv_lanes lanes_of_prompt(uint32_t ic, uint32_t head, const std::vector<float> & saved) const;
    llama_snapkv_lanes lanes_of_answer(uint32_t ic, uint32_t head, const llama_snapkv_queries & queries) const;
    bool make_index(uint32_t n_asked, const std::function<bool()> & stops);
    std::vector<llama_snapkv_change> choose(const llama_snapkv_record::layer & kept, uint32_t head, const std::vector<float> & worth, uint32_t n_prefix,
            const llama_snapkv_votes_of_head & votes) const;
    bool gather(llama_snapkv_ranked & known, const std::function<bool()> & stops) const;
    bool each_head(const llama_snapkv_record & record, const std::function<void(uint32_t ic, uint32_t head, llama_snapkv_votes_of_head & votes)> & fn,
            const std::function<bool()> & stops);

    llama_snapkv_vault & vault;
    const llama_snapkv_params params;
    const std::vector<llama_snapkv_span> protected_spans;
    const std::vector<std::vector<int32_t>> readers;
    const uint32_t n_threads;
    uint64_t bytes_votes = 0;
};
