// SnapKV for llama.cpp: layer-group prefill, observation-window scoring and per-head KV eviction.
// Paper: Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", arXiv 2404.14469.
//
// Shapes are written in ggml order, [ne0, ne1, ne2, ne3], ne0 contiguous in memory.
// A "cached layer" is a layer with full attention in the KV cache; sliding-window layers are bounded by the model
// itself and are left alone. Functions that take `ic` mean the ic-th cached layer, counted from 0.
//
// A sequence goes through
//     llama_snapkv_prefill -> (kept rows, packed) -> llama_decode as usual, positions go on at n_prompt
// Return codes follow llama_decode: 0 success, 1 no room in the KV cache, 2 aborted, negative: error.
// llama_snapkv_last_error() then has the reason. After 2 or an error the sequence is empty and the context usable.
// A struct that begins with `size` has its sizeof there: a caller sets it, or takes what a default function returns, and that of another
// version is refused. A function that is given an array and its length n returns how many there are, and writes up to n.
#pragma once

#include "llama.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

//
// settings
//

enum llama_snapkv_pooling {
    LLAMA_SNAPKV_POOLING_AVG = 0, // torch.avg_pool1d(count_include_pad = True)
    LLAMA_SNAPKV_POOLING_MAX = 1,
    LLAMA_SNAPKV_POOLING_NOSINK = 2, // AVG in which the first key's vote is 0: an attention sink there lifts none of its neighbours
};

// how the window's query rows vote together
enum llama_snapkv_aggregation {
    LLAMA_SNAPKV_AGGREGATION_SUM = 0, // the paper, section 4.1
    LLAMA_SNAPKV_AGGREGATION_MAX = 1, // defensive: keep what any one query needs (arXiv 2510.13334)
};

// where the hidden state between layer groups lives
enum llama_snapkv_hidden_state {
    LLAMA_SNAPKV_HIDDEN_STATE_AUTO = 0,
    LLAMA_SNAPKV_HIDDEN_STATE_DEVICE = 1,
    LLAMA_SNAPKV_HIDDEN_STATE_HOST = 2,
};

// what computes scores and evicts
enum llama_snapkv_ops {
    LLAMA_SNAPKV_OPS_AUTO = 0,  // fused ops where the layer's device has them, else ggml's own
    LLAMA_SNAPKV_OPS_FUSED = 1, // an error where it has not
    LLAMA_SNAPKV_OPS_GGML = 2,
};

// what goes through all layers
enum llama_snapkv_prefill_mode {
    LLAMA_SNAPKV_PREFILL_EXACT = 0,     // all rows of the prompt
    LLAMA_SNAPKV_PREFILL_SELECTIVE = 1, // not exact: from some layer on only the rows that the votes of those before rank highest
};

struct llama_snapkv_params {
    size_t size;

    uint32_t budget;       // rows kept for each KV head, the window included; 0: use keep_ratio
    float keep_ratio;      // the paper's p in (0, 1]: floor(p*(n_prompt - window_size)) prefix rows are kept; used if budget == 0
    uint32_t window_size;  // last tokens of the prompt, whose rows all stay
    uint32_t observation;  // how many of these vote, the last ones; 0: 16, or all of a smaller window
    uint32_t kernel_size;  // pooling kernel, tokens, odd; 1: no pooling
    enum llama_snapkv_pooling pooling;
    enum llama_snapkv_aggregation aggregation;
    float self_weight;     // a position's score is its pooled vote + self_weight * its own vote; 0 in the paper
    uint32_t n_sink;       // first prompt positions that are always kept
    float min_coverage;    // if the budget's rows hold less of the window's attention mass, mean over layers and KV heads, keep
                           // more, up to max_budget; 0: the budget is what is kept. needs a budget
    uint32_t max_budget;   // with min_coverage; the context has cells for it
    uint32_t decode_cells; // cells for tokens after the prompt, for each sequence
    uint32_t layer_group;  // G, cached layers whose full KV is live at once; 0: auto
    enum llama_snapkv_hidden_state hidden_state;
    uint32_t n_ubatch;     // tokens of the prompt that are computed at once; 0: the context's n_ubatch, less where a GPU's memory is short
    enum llama_snapkv_ops ops;
    bool keep_scores;      // keep the pooled scores for llama_snapkv_scores()
    bool vault;            // keep K and V of all prompt tokens off the device, see llama_snapkv_select_rows()
    uint64_t vault_limit;  // bytes that the vault of a sequence may take; 0: no limit
    enum llama_snapkv_prefill_mode prefill; // selective: without a vault, without a tap, and not for models with recurrent layers
    float select_share;    // of the prompt's rows, those that later layers compute, in (0, 1]: whole runs of 8 tokens, and always the
                           // first run, protected spans, and what the window's queries and sliding-window layers need at the end
    uint32_t select_min;   // they are so many at least, and no fewer than are kept of a layer
    float select_depth;    // share of the layers that all rows go through at least, in [0, 1]
    float select_settled;  // the layers to come are asked for their votes, ahead, with the hidden state of now, and asked again some layers later, so
                           // up to four times: rows are chosen when those of the time before get this share of the votes, in [0, 1]; if they
                           // never do, the prefill is exact. 0: at select_depth, asked once
    uint32_t recall_every; // after so many tokens of an answer rows of the vault that the last ones attend to take the places of kept ones
                           // that matter less, see llama_snapkv_recalls(); 0: never. needs a vault, and where there are several sequences cells for each (kv_unified false).
                           // UINT32_MAX: 16, and more where the cache is not in host memory and the prompt has more than 3,072 tokens: as many as
                           // a ranking takes the time of
    uint32_t recall_queries; // so many of the last tokens ask, in [1, recall_every]
    uint32_t recall_rows;    // of each KV head so many rows are asked, at least, or four times those that are kept: where the vault has
                             // more, those of the stretches that its index ranks highest; 0: all rows, always
    int32_t recall_delay;    // tokens of the answer between the last that asks and the rows that come in, in [0, recall_every): meanwhile other
                             // threads count votes. 0: the answer waits. negative: 0 where the cache is in host memory, else as many as a
                             // ranking takes the time of, and at most 7/8 of recall_every
    float recall_margin;     // so many times as much as a kept row is worth another has to be to take its place, at least 1
};

LLAMA_API struct llama_snapkv_params llama_snapkv_default_params(void);

//
// failures
//

// the reason of this thread's last failure in a llama_snapkv_ function; "" if none
LLAMA_API const char * llama_snapkv_last_error(void);

// llama_decode() for callers that C++ exceptions must not reach: what it throws is an error (-1), and so is too little
// memory for what it would not check itself, and a position that the model does not know (llama_snapkv_n_positions). What the
// context holds is then unknown: clear it
LLAMA_API int32_t llama_snapkv_decode(struct llama_context * ctx, struct llama_batch batch);

// for programs, not for libraries: where ggml would abort, or an exception would leave a thread, the process writes one
// line to fd and exits with status 1
LLAMA_API void llama_snapkv_exit_on_abort(int fd);

//
// devices
//

// true if a device, named as ggml names it, has the fused ops for usual shapes (128 elements a head, K in f16); elsewhere
// ggml's own ops do the same
LLAMA_API bool llama_snapkv_has_fused_ops(const char * device);

// what the register says of one of ggml's backends. on devices of those that are not proven, or in no line, contexts are refused, unless
// the environment variable SNAPKV_UNPROVEN is 1: then a small model with heads of the same shape is computed there first, as
// llama_snapkv_prove() does it, and a difference is a refusal, which SNAPKV_UNPROVEN=2 overrides
struct llama_snapkv_backend_info {
    size_t size;

    const char * name;     // ggml's name of the backend
    const char * title;    // what people call it
    const char * evidence; // what was run where and when, or why results cannot be relied on: sentences
    bool proven;           // prefills there were shown to be exact; the others are about models of a kind
    bool checked;          // they were on one device: on others a small model is computed when a model is loaded, and has to be exact
    bool proven_recurrent; // with recurrent layers
    bool proven_latent;    // with latent attention (MLA)
    bool proven_wide;      // with heads of more than 256 elements
    bool proven_sharing;   // with layers that read the KV of another
    bool proven_selective; // and so are selective prefills to what is tested of them; they are no kind of models
    bool proven_recall;    // and recalls while answering
    bool fused;            // has the fused ops; where it has not, ggml's own ops score and evict, which takes longer
    bool copies_mask;      // each chunk's part of the mask is copied, since the backend's flash attention does not obey the mask's row stride
};

// the register's line i. false past its end
LLAMA_API bool llama_snapkv_get_backend(uint32_t i, struct llama_snapkv_backend_info * info);

// true if prefills on devices of one of ggml's backends, by its name, were shown to be exact on hardware
LLAMA_API bool llama_snapkv_proven(const char * backend);

// what the last llama_snapkv_supported() or llama_snapkv_init_from_model() of this thread that was true warns of: devices that nobody has
// proven, and what came out of the check there; "" if nothing
LLAMA_API const char * llama_snapkv_last_warning(void);

// whether a prefill is exact on a device: a small model with random weights is made there and computed, by llama_decode() and by layer groups
struct llama_snapkv_proof {
    size_t size;

    // what to compute
    uint32_t head_dim_k, head_dim_v, n_head, n_head_kv;
    int32_t type_k, type_v; // enum ggml_type, of the KV cache
    uint32_t n_tokens, n_ubatch;
    uint32_t layer_group;   // G, of 5 layers

    // what came out
    double max_diff;        // between the last token's logits after a prefill by layer groups and after llama_decode(); 0: exact
    double max_logit;       // the largest of these, by its amount
    double max_diff_cpu;    // between those after llama_decode() there and on the CPU: rounding, unless the backend computes something else
    double max_diff_ops;    // between the votes that fused ops and ggml's ops count there, as a share of the greatest; -1: it has no fused ops
    double ratio_fused;     // share of the layers that fused ops scored and evicted
    double seconds_plain;   // of the prompt, by llama_decode()
    double seconds_prefill; // by layer groups, scoring and eviction included
    double decode_speed;    // tokens a second after that
};

// f16, G = 1, heads of 128 elements
LLAMA_API struct llama_snapkv_proof llama_snapkv_default_proof(void);

// fill in what came out on a device, by ggml's name of it, proven or not. false if it could not be computed
LLAMA_API bool llama_snapkv_prove(const char * device, struct llama_snapkv_proof * proof);

//
// contexts
//

// true if contexts for this model can be made with these parameters. nothing of the model's KV size is allocated.
// if false, llama_snapkv_last_error() names the reason
LLAMA_API bool llama_snapkv_supported(struct llama_model * model, struct llama_context_params cparams, struct llama_snapkv_params params);

// false, and llama_snapkv_last_error() names the reason, for layers that a file describes and llama.cpp would end the process for:
// to be asked before a context of its own is made. llama_snapkv_supported() has asked it
LLAMA_API bool llama_snapkv_check_model(const struct llama_model * model);

// positions that a model has learned embeddings of, as GPT-2 has: where a token has another one, llama_decode() ends the process, or
// reads what is no embedding, and our functions refuse it. 0: the model has no such embeddings
LLAMA_API uint32_t llama_snapkv_n_positions(const struct llama_model * model);

// like llama_init_from_model(), but cparams.n_ctx is the logical context (what RoPE scaling and llama_n_ctx() see) and
// the KV cache has only the cells that budget and decode_cells ask for. NULL on failure
LLAMA_API struct llama_context * llama_snapkv_init_from_model(struct llama_model * model, struct llama_context_params cparams, struct llama_snapkv_params params);

// true if the context was made by llama_snapkv_init_from_model()
LLAMA_API bool llama_snapkv_enabled(const struct llama_context * ctx);

// change what the next prefill does; cells are not changed, so a budget that needs more is an error. false on error
LLAMA_API bool llama_snapkv_set_params(struct llama_context * ctx, struct llama_snapkv_params params);

// the logits [n_vocab] that llama_get_logits_ith(ctx, -1) gives until the next llama_decode(): those of the last token of a sequence
// whose saved state was read. false if the context is not ours, or out of memory
LLAMA_API bool llama_snapkv_set_logits(struct llama_context * ctx, const float * logits);

LLAMA_API uint32_t llama_snapkv_n_layer(const struct llama_context * ctx);               // cached layers
LLAMA_API int32_t llama_snapkv_layer_id(const struct llama_context * ctx, uint32_t ic);  // index in the model
LLAMA_API uint32_t llama_snapkv_n_head_kv(const struct llama_context * ctx, uint32_t ic);
LLAMA_API uint64_t llama_snapkv_row_bytes(const struct llama_context * ctx);             // K and V of a token, all cached layers

//
// prompts
//

// called while chunks are computed, and after them. done and total count token passes through layer groups: n_prompt * n_groups in
// total, fewer from where a selective prefill has chosen its rows. return false to abort. nothing of the context may be changed
// meanwhile, nor within a tap
typedef bool (*llama_snapkv_progress_callback)(uint64_t done, uint64_t total, void * user_data);

// called between two chunks, when the context is an ordinary one for all sequences but that of the prompt: these may be decoded
// (llama_snapkv_decode, llama_decode) and their logits read, they may be removed, copied, saved and loaded, keep states and go back to
// them, and have their vaults. what the context computes with (threads, adapters) holds for the chunks that follow, too. return false
// to abort. refused, with a reason: the sequence of the prompt, another prefill or selection of rows, what concerns all sequences, and
// to free the context. rows and logits are those of a prefill with nothing in between, bit for bit where each sequence has
// cells of its own (kv_unified = false). other cells: those that the prompt will take are taken from the start, and in sliding-window
// layers that is a window and a chunk, so that its sums there are made in another order than without this callback. compute buffers for
// others are held beside those of the prefill. there is no call after the last chunk: the logits are then those of the prompt
typedef bool (*llama_snapkv_yield_callback)(void * user_data);

// what the scorer of one cached layer sees; for policies, tests and tools. called before eviction
struct llama_snapkv_tap_data {
    uint32_t ic;
    const float * q;      // [head_dim, n_queries, n_head], of the last n_queries positions, after RoPE. n_head: of all layers that read
                          // this layer's KV, head h has KV head h / (n_head / n_head_kv)
    const float * k;      // [head_dim, n_prompt, n_head_kv], as the cache holds it
    const float * v;      // [head_dim_v, n_prompt, n_head_kv]
    uint32_t head_dim, head_dim_v, n_queries, n_head, n_prompt, n_head_kv;
    uint32_t n_kept;
    float scale;
    float softcap; // 0: none
    int32_t * ids;    // [n_kept, n_head_kv]: the prompt positions that will be kept before the window. may be overwritten by
                      // others: ascending for each head, distinct, below n_prompt - window_size
    float * coverage; // [n_head_kv]: share of the window's attention mass on these and the window. to be overwritten with them
};
typedef void (*llama_snapkv_tap_callback)(const struct llama_snapkv_tap_data * data, void * user_data);

// [begin, end)
struct llama_snapkv_span {
    llama_pos begin;
    llama_pos end;
};

// what a prefill is told of its tokens. all of it is read during the call only: nothing holds for a later one. zeros stand for
// what a prompt has not
struct llama_snapkv_prompt {
    size_t size;

    llama_seq_id seq_id;
    uint32_t n_tokens;
    const llama_token * tokens; // [n_tokens]

    // positions that stay whatever the votes say, [n_protected]; those that the sequence does not have do no harm
    const struct llama_snapkv_span * protected_spans;
    uint32_t n_protected;

    // positions of the question, whose words vote in the place of the last `observation` tokens, as far as they lie in the window; before
    // the window, or begin == end: the last ones vote
    struct llama_snapkv_span question;

    uint32_t n_queries; // save the queries of so many last ones of these tokens, for the tap and the vault; at least the window's are

    const char * vault_dir; // the vault's new rows go to a file in this folder, of the size of what it holds, and gone with it; NULL: host memory

    llama_snapkv_progress_callback progress; // may be NULL
    void * progress_data;
    llama_snapkv_yield_callback on_yield; // may be NULL: other sequences wait
    void * yield_data;
    llama_snapkv_tap_callback tap; // may be NULL
    void * tap_data;
};

// a prompt of these tokens, of which nothing else is known
LLAMA_API struct llama_snapkv_prompt llama_snapkv_default_prompt(llama_seq_id seq_id, const llama_token * tokens, uint32_t n_tokens);

// evaluate a prompt at positions 0..n_tokens-1 of a sequence, replacing what the sequence held. longer than the
// budget: layer by layer group, evicting each group before the next one starts. up to the budget: llama_decode().
// the last token's logits are then at llama_get_logits_ith(ctx, -1)
LLAMA_API int32_t llama_snapkv_prefill(struct llama_context * ctx, const struct llama_snapkv_prompt * prompt);

// evaluate tokens from position pos0 of a sequence on, in the place of what it has there, and evict down to the budget: all rows
// before, whether kept from the prompt or of later tokens, compete for it with the new ones. so a conversation goes on beyond the
// cells of the context. at least as many tokens as the window has: to make room without new ones, give the last ones again. pos0
// is at or after pos_exact (llama_snapkv_seq_info), and with recurrent layers the sequence's end: to give tokens again, go back
// to a state first (llama_snapkv_go_back). nothing goes into the vault. a negative code other than -1, or 2: the sequence
// is empty
LLAMA_API int32_t llama_snapkv_extend(struct llama_context * ctx, llama_pos pos0, const struct llama_snapkv_prompt * prompt);

//
// what a prefill did, and what a sequence holds
//

// bytes and seconds of the last llama_snapkv_prefill()
struct llama_snapkv_stats {
    size_t size;

    uint32_t n_prompt;           // tokens
    uint32_t n_kept;             // rows for each KV head, the window included; n_prompt if nothing was evicted
    uint32_t n_cached;           // tokens at the prompt's start that came from the vault
    uint32_t layer_group;        // G used; 0: ordinary path
    uint32_t n_ubatch;           // tokens per ubatch
    uint32_t n_voters;           // tokens that voted; 0 if nothing was evicted
    uint32_t n_after_voters;     // tokens after them
    uint64_t bytes_kv;           // KV cache of the context, all sequences, and their states of recurrent layers
    uint64_t bytes_recurrent;    // of these, the states
    uint64_t bytes_kv_group;     // full KV of one layer group
    uint64_t bytes_hidden;       // hidden state between groups, on the device and in host memory
    uint64_t bytes_hidden_host;  // of these, in host memory beside a GPU
    uint64_t bytes_weights_lent; // weights lent to the devices, of layers that are in host memory or on another GPU
    uint64_t bytes_mask;         // persistent attention mask
    uint64_t bytes_vault;        // K and V of all prompt tokens in host memory, and queries
    uint64_t bytes_state;        // states of recurrent layers in host memory, which the sequence and its vault can go back to
    uint64_t bytes_compute;      // largest compute buffer during prefill
    uint64_t bytes_kv_full;      // KV cache that the prompt would take without eviction
    double seconds_prefill;      // all of it, scoring and eviction included, on_yield not
    double seconds_score;
    double seconds_evict;
    double ratio_fused;          // share of the cached layers that fused ops scored and evicted
    double coverage;             // share of the window's attention mass on the kept rows, mean over cached layers and KV heads; 1 if nothing was evicted
    uint32_t n_selected;         // rows that later layers have computed; 0: a selection was not asked for, or was not made
    uint32_t n_layer_all;        // layers of the model that all rows went through
    double settled;              // share of the votes of layers to come on rows that would have been chosen when they were asked before; the last time
    double layer_work;           // rows that went through a layer, as share of all rows through all layers
    double seconds_select;       // asking the layers to come, and gathering rows
};

// the state of one sequence
struct llama_snapkv_seq_info {
    size_t size;

    bool compacted;
    uint32_t n_prompt;   // tokens, 0 if not compacted
    uint32_t n_kept;     // rows for each KV head, 0 if not compacted
    llama_pos pos_exact; // from here on a cell's position is the position of its token: removal may start here
    llama_pos pos_swa;   // first position that sliding-window layers still hold, 0 without such layers, -1 if they hold none
    uint32_t n_cells;    // cells that the sequence may use
    uint32_t n_free;     // of these, free
};

LLAMA_API bool llama_snapkv_get_stats(const struct llama_context * ctx, struct llama_snapkv_stats * stats);
LLAMA_API bool llama_snapkv_get_seq_info(const struct llama_context * ctx, llama_seq_id seq_id, struct llama_snapkv_seq_info * info);

// prompt positions kept before the window by a compacted sequence, ascending
LLAMA_API uint32_t llama_snapkv_kept(const struct llama_context * ctx, llama_seq_id seq_id, uint32_t ic, uint32_t head, int32_t * ids, uint32_t n);

// pooled scores [n_prompt - window_size] of the last prefill, if keep_scores; 0 for rows that a layer had no more
LLAMA_API uint32_t llama_snapkv_scores(const struct llama_context * ctx, uint32_t ic, uint32_t head, float * scores, uint32_t n);

// positions of the rows that later layers have computed in the last prefill, if that has made a selection, ascending
LLAMA_API uint32_t llama_snapkv_selected(const struct llama_context * ctx, int32_t * ids, uint32_t n);

// share of the window's attention mass that lies on the kept rows of a KV head, after the last prefill. negative if that has
// evicted nothing
LLAMA_API float llama_snapkv_coverage(const struct llama_context * ctx, uint32_t ic, uint32_t head);

//
// the vault
//

// with params.vault a prefill keeps K and V of all prompt tokens. a later prompt of the sequence that begins with the
// same tokens is evaluated from where it parts from them, and the rows to keep are chosen anew

// what the vault holds of a cached layer
struct llama_snapkv_vault_info {
    size_t size;

    uint32_t n_tokens;
    uint32_t n_queries; // of the last positions
    uint32_t n_head, n_head_kv; // n_head: of all layers that read the layer's KV
    uint32_t head_dim, head_dim_v;
    uint32_t row_bytes_k; // of a token, as the cache holds it
    uint32_t row_bytes_v; // 0: V is the first head_dim_v elements of K's row (MLA)
    float scale;
    float softcap; // 0: none
};

// a part of the vault, as it lies in memory: what a prefill has added, or what was attached
struct llama_snapkv_vault_segment {
    size_t size;

    uint32_t pos0;              // position of the first token
    uint32_t n_tokens;
    const llama_token * tokens;
    const void * const * k;     // for each cached layer n_tokens rows, as the cache holds them
    const void * const * v;
    // sliding-window layers: rows of the positions before the segment's end, for each such layer n_swa_rows of K, then of V. without
    // them a prompt cannot go on from there. NULL for other models
    const void * swa;
    uint64_t swa_bytes;
    uint32_t n_swa_rows;
};

LLAMA_API uint32_t llama_snapkv_vault_n_segments(const struct llama_context * ctx, llama_seq_id seq_id);
LLAMA_API bool llama_snapkv_vault_get_segment(const struct llama_context * ctx, llama_seq_id seq_id, uint32_t i, struct llama_snapkv_vault_segment * segment);

// add a segment to the end of a vault, which may be empty: a prompt that begins with its tokens goes on from it. K, V and the rows
// for sliding windows are not copied: they must stay until the vault is cleared. false on error
LLAMA_API bool llama_snapkv_vault_attach(struct llama_context * ctx, llama_seq_id seq_id, const struct llama_snapkv_vault_segment * segment);

// false if the sequence has no vault
LLAMA_API bool llama_snapkv_get_vault_info(const struct llama_context * ctx, llama_seq_id seq_id, uint32_t ic, struct llama_snapkv_vault_info * info);

// all of a layer in f32, each may be NULL: q [head_dim, n_queries, n_head], k [head_dim, n_tokens, n_head_kv],
// v [head_dim_v, n_tokens, n_head_kv]. false if the sequence has no vault
LLAMA_API bool llama_snapkv_vault_read(const struct llama_context * ctx, llama_seq_id seq_id, uint32_t ic, float * q, float * k, float * v);

// fill the compact cache anew from the vault: for each KV head of cached layer ic n_kept[ic] prefix rows, and the window. what
// followed the prompt is removed. ids: [n_kept[ic], n_head_kv] for one cached layer after the other: prompt positions, ascending
// for each head, distinct, below n_prompt - window_size; NULL keeps the whole prompt, whatever n_kept says. layers may differ in
// n_kept in contexts of one sequence. 0 on success, 1: not so many cells, negative: error. -1 and 1 leave the cache as it was
LLAMA_API int32_t llama_snapkv_select_rows(struct llama_context * ctx, llama_seq_id seq_id, const uint32_t * n_kept, const int32_t * ids);

// free the vault of a sequence, and its states; nothing is recalled until its next prompt, and nothing known of recalls before
LLAMA_API void llama_snapkv_vault_clear(struct llama_context * ctx, llama_seq_id seq_id);

//
// recall while answering
//

// with params.recall_every tokens that llama_snapkv_decode() computes after a prompt are counted, for each sequence, with the params of
// that prompt. after so many of them the queries of the last recall_queries ones vote for the rows of the vault, joined and pooled as
// params have it. a kept row is worth the most that any votes gave it, those of the prompt's last tokens included, and a tenth less with
// each recall since. of each KV head the rows that are worth most stay in the cache or come into it, at the cells of those that go: as many
// as before, each a copy of the vault's bytes. sinks, spans that the prompt protects, the window, and what followed the prompt stay. it is
// not exact: what a token did not see it has not seen. where a recall is aborted or fails, nothing has changed. a sequence whose state was
// loaded recalls nothing until its next prompt

struct llama_snapkv_recall_event {
    llama_pos pos;       // of the last token before it
    uint64_t n_rows;     // that have been replaced, each of one KV head, in all layers
    uint64_t n_bytes;    // written into the cache
    double seconds_rank; // votes and ranks, with the index where it was made
    double seconds_wait; // of these, what the answer waited for
    double seconds_copy;
    uint64_t bytes_votes; // that votes were counted in, in host memory, the most until then
    uint64_t bytes_index; // of the vault's index
};

// the recalls since a sequence's last prompt
LLAMA_API uint32_t llama_snapkv_recalls(const struct llama_context * ctx, llama_seq_id seq_id, struct llama_snapkv_recall_event * events, uint32_t n);

//
// states of recurrent layers
//

// models that have recurrent layers beside those with attention: such a layer has one state for each sequence, that behind its last
// token, and cannot go back to an earlier one. so states are kept in host memory: behind each prefill, where a caller asks for it,
// and in the vault before the last tokens of a prompt, the closer to its end the more. of a sequence, and of its vault, a few: where
// there are too many the one goes that is least missed. what the sequence's cells no longer hold, an eviction or a removal,
// takes the states behind it along

struct llama_snapkv_state {
    size_t size;

    llama_pos pos;        // of the token that comes next
    const void * data;    // of all recurrent layers, one after the other, as they lie in llama.cpp's memory
    uint64_t n_bytes;
    const float * logits; // [n_vocab] of the token before pos; NULL if they are not known
};

// keep the state behind a sequence's last token. with_logits: those of llama_get_logits_ith(ctx, -1) are that token's. false on
// error, and for models without recurrent layers
LLAMA_API bool llama_snapkv_keep_state(struct llama_context * ctx, llama_seq_id seq_id, bool with_logits);

// go back to the state kept at a position, and remove what follows it; its logits, if they are known, are those of
// llama_get_logits_ith(ctx, -1) until the next llama_decode(). false, with the sequence as it was, if there is none
LLAMA_API bool llama_snapkv_go_back(struct llama_context * ctx, llama_seq_id seq_id, llama_pos pos);

// what is kept of a sequence, or with in_vault by its vault, by ascending position. data and logits are the library's
LLAMA_API uint32_t llama_snapkv_n_states(const struct llama_context * ctx, llama_seq_id seq_id, bool in_vault);
LLAMA_API bool llama_snapkv_get_state(const struct llama_context * ctx, llama_seq_id seq_id, bool in_vault, uint32_t i, struct llama_snapkv_state * state);

// keep a state that was got from the same tokens, such as a file's; the vault, or the sequence's cells, hold the tokens before it.
// with in_vault the data is not copied: it must stay until the vault is cleared. false on error
LLAMA_API bool llama_snapkv_add_state(struct llama_context * ctx, llama_seq_id seq_id, bool in_vault, const struct llama_snapkv_state * state);

// guesses of what a sequence says next, such as a smaller model's, are evaluated together, and those behind a wrong one are removed.
// recurrent layers go back for that to the state before the guesses, which is put aside on the device that computes the layer

// room for one such state of each sequence, which llama_snapkv_begin_look() gets where there is none. false on error, and for models
// without recurrent layers
LLAMA_API bool llama_snapkv_reserve_looks(struct llama_context * ctx);

// put the state behind a sequence's last token aside, in the place of what is there of it. false on error
LLAMA_API bool llama_snapkv_begin_look(struct llama_context * ctx, llama_seq_id seq_id);

// go back to what was put aside, if that was at or before a position, and remove what follows it; it may be gone back to again. returns
// the position of the token that comes next; -1, with the sequence as it was, if nothing is put aside, or rows were evicted or tokens
// before it removed since; -2: the sequence is empty
LLAMA_API llama_pos llama_snapkv_take_back(struct llama_context * ctx, llama_seq_id seq_id, llama_pos pos);

// prediction heads of a model's own (MTP, NextN) guess from the hidden state behind a token. they run in a context of
// LLAMA_CONTEXT_TYPE_MTP, and these are upstream's functions of its staging header (llama-ext.h) for it, of any context

// from now on keep the hidden state of each token that has logits; a prefill by layer groups keeps none
LLAMA_API void llama_snapkv_keep_hidden(struct llama_context * ctx, bool keep);

// [n_embd] of a token, counted as in llama_get_logits_ith(); NULL if none was kept. valid until the next llama_decode()
LLAMA_API const float * llama_snapkv_hidden(struct llama_context * ctx, int32_t i);

#ifdef __cplusplus
}
#endif
