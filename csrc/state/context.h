// SnapKV's state of one llama_context.
#pragma once

#include "snapkv.h"

#include "upstream/snapkv-guard.h"
#include "vault/vault.h"

#include "llama-kv-cache.h"

#include <map>
#include <memory>
#include <string>
#include <vector>

// cells in use are rounded up to this, as llama_kv_cache::get_n_kv() does
static constexpr uint32_t LLAMA_SNAPKV_N_KV_PAD = 256;

class llama_kv_cache_iswa;
class llama_memory_hybrid;
class llama_memory_recurrent;
struct llama_model;
class llama_snapkv_looks;
struct llama_snapkv_recall;

struct llama_snapkv {
    llama_snapkv_params params = {};
    llama_snapkv_stats stats = {};
    bool has_stats = false;
    double seconds_others = 0.0; // of the last prefill: in on_yield

    // pooled scores [n_prompt - window_size] of the last prefill, for each cached layer and KV head; empty unless keep_scores
    std::vector<std::vector<std::vector<float>>> scores;

    // of the last prefill, for each cached layer and KV head; empty if nothing was evicted
    std::vector<std::vector<float>> coverage;

    // positions of the rows that later layers have computed in the last prefill; empty if all have computed all
    std::vector<int32_t> selected;

    std::map<llama_seq_id, llama_snapkv_vault> vaults;
    std::map<llama_seq_id, llama_snapkv_record_ptr> of_vault; // rows that are the vault's; a state that was loaded has others

    std::map<llama_seq_id, std::shared_ptr<llama_snapkv_recall>> recalls; // of sequences whose last prompt was evaluated with params.recall_every

    std::shared_ptr<llama_snapkv_looks> looks; // null until guesses are looked at, and for models without recurrent layers
};

// the cache of the full-attention layers, and what it is a part of; null where the model has no such layers
struct llama_snapkv_memory {
    llama_kv_cache * base = nullptr;
    llama_kv_cache_iswa * iswa = nullptr;   // with sliding-window layers
    llama_memory_hybrid * hybrid = nullptr; // with recurrent layers
    llama_memory_recurrent * recr = nullptr; // of the hybrid: one state of fixed size for each sequence and layer
};

// null and llama_snapkv_last_error() set if the context is not ours
llama_snapkv * llama_snapkv_of(const llama_context * ctx);

// all null for a kind of memory that is not supported
llama_snapkv_memory llama_snapkv_memory_of(llama_context & ctx);

// null and llama_snapkv_last_error() set if the sequence has none
const llama_snapkv_vault * llama_snapkv_vault_of(const llama_context * ctx, llama_seq_id seq_id);

// layers of the model that read the KV of a cached layer, in their order: the layer itself, and those that have none of their own.
// All of their query heads vote for the layer's rows as one: each head's attention is a distribution, so that each has the same say, and
// a KV head's rows are ranked by the mean over the query heads that read it, in whichever layer, as they are where several share it
// within one. What the kept rows hold of that mean is the coverage. A maximum would leave the budget to the layer that attends most sharply
std::vector<int32_t> llama_snapkv_readers(const llama_kv_cache & base, int32_t il);

// query heads of these layers
uint32_t llama_snapkv_n_head(const llama_model & model, const llama_kv_cache & base, int32_t il);

// shapes of the rows that a vault keeps
std::vector<llama_snapkv_vault_layer> llama_snapkv_vault_layers(llama_context & ctx);

// "" or why a token cannot be at a position: the model has no embedding of it (llama_snapkv_n_positions)
std::string llama_snapkv_check_position(const llama_model & model, int64_t pos);

// what llama_snapkv_last_error() says on this thread; to be set without a log
std::string & llama_snapkv_error();

// sets llama_snapkv_last_error() and logs
void llama_snapkv_set_error(const std::string & message);
