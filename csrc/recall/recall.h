// Recall while answering: rows of the vault that an answer's tokens attend to take the places of rows that no longer matter, within
// the same cells. Like the pages of Quest (arXiv 2406.10774) and ArkVale (NeurIPS 2024), but row by row for each KV head, and from
// the exact votes of all rows.
#pragma once

#include "snapkv.h"

#include "recall/queries.h"
#include "state/context.h"

#include "llama-context.h"

#include <memory>
#include <vector>

// of the sequence 0 of a context, since its prompt
struct llama_snapkv_recall {
    std::vector<llama_snapkv_span> protected_spans;
    std::vector<llama_snapkv_recall_event> events;

    llama_snapkv_queries queries; // of the last tokens
    uint32_t n_since = 0;         // tokens since the last recall

    // what a kept row is worth: the most that any votes gave it, faded with each recall since. for each cached layer [n_kept, n_head_kv]
    // as record has them
    llama_snapkv_record_ptr record;
    std::vector<std::vector<float>> worth;
};

// called where a prompt begins: nothing of the one before holds
void llama_snapkv_recall_begin(llama_snapkv & sk, const llama_snapkv_prompt & prompt);

// one batch of an answer: made before llama_decode(), which then leaves the queries that the next recall asks with
class llama_snapkv_recall_step {
public:
    llama_snapkv_recall_step(llama_context & ctx, int32_t n_tokens);

    ~llama_snapkv_recall_step();

    // after it has succeeded: recalls, if so many tokens have come. where it is aborted or fails, nothing has changed. throws
    // std::runtime_error or std::bad_alloc
    void end();

private:
    llama_context & ctx;
    llama_snapkv * sk = nullptr; // null: there is nothing to recall
    int32_t n_tokens;
    bool has_ended = false;
    std::vector<int32_t> layers;
    std::unique_ptr<llama_snapkv_watch> watch;
};
