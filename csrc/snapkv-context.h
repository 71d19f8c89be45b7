// SnapKV's state of one llama_context.
#pragma once

#include "snapkv.h"

#include "snapkv-guard.h"
#include "snapkv-vault.h"

#include "llama-kv-cache.h"

#include <map>
#include <string>
#include <vector>

// cells in use are rounded up to this, as llama_kv_cache::get_n_kv() does
static constexpr uint32_t LLAMA_SNAPKV_N_KV_PAD = 256;

class llama_kv_cache_iswa;

struct llama_snapkv {
    llama_snapkv_params params = {};
    llama_snapkv_stats stats = {};
    bool has_stats = false;

    // pooled scores [n_prompt - window] of the last prefill, for each cached layer and KV head; empty unless keep_scores
    std::vector<std::vector<std::vector<float>>> scores;

    // of the last prefill, for each cached layer and KV head; empty if nothing was evicted
    std::vector<std::vector<float>> coverage;

    std::vector<std::pair<llama_pos, llama_pos>> protected_spans; // [begin, end)

    // the question's tokens, and those after it; 0: none is known
    uint32_t n_question = 0;
    uint32_t n_after_question = 0;

    std::map<llama_seq_id, llama_snapkv_vault> vaults;
    std::string vault_dir; // folder of the vault's files; "": it is in host memory

    llama_snapkv_tap_callback tap = nullptr;
    void * tap_data = nullptr;
};

// the cache of the full-attention layers, and the pair that it is part of in sliding-window models (else iswa is null)
struct llama_snapkv_memory {
    llama_kv_cache * base = nullptr;
    llama_kv_cache_iswa * iswa = nullptr;
};

// null and llama_snapkv_last_error() set if the context is not ours
llama_snapkv * llama_snapkv_of(const llama_context * ctx);

// {nullptr, nullptr} for a kind of memory that is not supported
llama_snapkv_memory llama_snapkv_memory_of(llama_context & ctx);

// "" or what is wrong with the parameters and how to mend it
std::string llama_snapkv_check_params(const llama_snapkv_params & params);

// rows kept for each KV head of a prompt, the window included; n_prompt if nothing is to be evicted
uint32_t llama_snapkv_n_rows(const llama_snapkv_params & params, uint32_t n_prompt);

// the most rows that may be kept, if the budget's hold too little of the attention mass
uint32_t llama_snapkv_n_rows_max(const llama_snapkv_params & params, uint32_t n_prompt);

// rows of the window that vote, where no question is known
uint32_t llama_snapkv_n_voters(const llama_snapkv_params & params);

// query rows that a prefill saves for each layer: the window's, and more for the vault
uint32_t llama_snapkv_n_queries(const llama_snapkv_params & params, uint32_t n_prompt);

// null and llama_snapkv_last_error() set if the sequence has none
const llama_snapkv_vault * llama_snapkv_vault_of(const llama_context * ctx, llama_seq_id seq_id);

// shapes of the rows that a vault keeps
std::vector<llama_snapkv_vault_layer> llama_snapkv_vault_layers(llama_context & ctx);

// side by side, for a sequence: free cells, or given ones. empty if there are none
llama_kv_cache::slot_info llama_snapkv_free_cells(llama_kv_cache & base, llama_seq_id seq_id, uint32_t n_cells);
llama_kv_cache::slot_info llama_snapkv_cells_at(const llama_kv_cache & base, llama_seq_id seq_id, uint32_t cell0, uint32_t n_cells);

// first one and number of a sequence's cells before a position, if they lie side by side and in the order of their positions;
// else none
std::pair<uint32_t, uint32_t> llama_snapkv_cells_before(const llama_kv_cache & base, llama_seq_id seq_id, llama_pos pos);

// kept rows and window of a compacted sequence as contiguous cells of the compact cache: packed right before the prompt's end
void llama_snapkv_place_cells(llama_kv_cache & base, llama_seq_id seq_id, const llama_kv_cache::slot_info & target, llama_snapkv_record_ptr record);

// memory of one row of logits. throws std::runtime_error
float * llama_snapkv_reserve_logits(llama_context & ctx);

// from now on that row is what the context's last token has
void llama_snapkv_show_logits(llama_context & ctx);

// while it lives, caches made on this thread get n_cells cells; with all = false sliding-window caches keep theirs
struct llama_snapkv_cells_scope {
    llama_snapkv_cells_scope(uint32_t n_cells, bool all);
    ~llama_snapkv_cells_scope();
};

// sets llama_snapkv_last_error() and logs
void llama_snapkv_set_error(const std::string & message);
