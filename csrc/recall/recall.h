// Recall while answering: rows of the vault that an answer's tokens attend to take the places of rows that no longer matter, within
// the same cells. As in Quest (arXiv 2406.10774) and ArkVale (NeurIPS 2024) a long vault's stretches are ranked first, and then the rows of
// those that matter are chosen one by one for each KV head.
#pragma once

#include "snapkv.h"

#include "recall/rank.h"
#include "state/context.h"

#include "llama-context.h"

#include <memory>
#include <vector>

class llama_snapkv_ranking;

// of a sequence, since its prompt
struct llama_snapkv_recall {
    llama_snapkv_recall();
    ~llama_snapkv_recall();

    llama_snapkv_params params; // of that prompt: another sequence may set others; with the tokens that they left to us
    std::vector<llama_snapkv_span> protected_spans;
    std::vector<llama_snapkv_recall_event> events;

    llama_snapkv_queries queries; // of the last tokens
    uint32_t n_since = 0;         // tokens since the last recall
    uint64_t bytes_votes = 0;     // of the largest buffer until now

    llama_snapkv_ranked known; // of the rows that are in the cache
    uint32_t n_asked = 0;      // tokens since the ranking began
    std::unique_ptr<llama_snapkv_ranking> ranking; // on its way, or null. it reads the vault
};

// called before a sequence's vault changes or goes: nothing reads it any more
void llama_snapkv_recall_settle(llama_snapkv & sk, llama_seq_id seq_id);

// tokens between two recalls, and between the last that asks and its rows; params may leave them to us, the latter with recall_every
// known. on_host: is the cache in host memory?
uint32_t llama_snapkv_recall_every(const llama_snapkv_params & params, uint32_t n_prompt, bool on_host);
uint32_t llama_snapkv_recall_delay(const llama_snapkv_params & params, uint32_t n_prompt, bool on_host);

// called where a prompt begins: nothing of the one before holds
void llama_snapkv_recall_begin(llama_context & ctx, llama_snapkv & sk, const llama_snapkv_prompt & prompt);

// one batch, of the answers of one or several sequences: made before llama_decode(), which then leaves the queries that the next recall of
// each asks with
class llama_snapkv_recall_step {
public:
    llama_snapkv_recall_step(llama_context & ctx, const llama_batch & batch);

    ~llama_snapkv_recall_step();

    // after it has succeeded: recalls, for each sequence of which so many tokens have come. where one is aborted or fails, nothing of its
    // sequence has changed, and the others recall. throws std::runtime_error or std::bad_alloc
    void end();

private:
    struct answer {
        llama_seq_id seq_id;
        llama_snapkv_recall * recall;
        uint32_t n_tokens; // of the batch
    };

    void advance(const answer & answer);

    llama_context & ctx;
    llama_snapkv * sk = nullptr; // null: there is nothing to recall
    bool has_ended = false;
    std::vector<answer> answers;
    std::unique_ptr<llama_snapkv_watch> watch;
};
