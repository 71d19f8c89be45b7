// One prefill, layer group by layer group. Its parts are in prefill/prefill.cpp (plans, memory, the order of things),
// prefill/chunks.cpp (graphs of chunks on the device) and prefill/rows.cpp (rows that come from elsewhere or go there).
#pragma once

#include "evict/compressor.h"
#include "graph/cut.h"
#include "graph/runner.h"
#include "prefill/prefill.h"
#include "staging/inputs.h"
#include "staging/place.h"
#include "staging/plan.h"
#include "staging/staging.h"
#include "staging/weights.h"
#include "upstream/access.h"

#include <exception>

struct llama_snapkv_aborted : std::exception {};
struct llama_snapkv_no_room : std::exception {};

// one prefill; its destructor leaves the context as an ordinary one, whatever happened
class llama_snapkv_prefill_run {
public:
    llama_snapkv_prefill_run(llama_context & ctx, llama_snapkv & sk, const llama_snapkv_prompt & prompt);
    ~llama_snapkv_prefill_run();

    void run();

private:
    // the graph of a chunk, from its start until the device has ended it
    struct flight {
        llama_snapkv_gctx gctx;
        std::unique_ptr<llm_graph_result> res;
        llama_snapkv_event landed;
        uint32_t n_tokens = 0; // 0: not in flight
    };

    void prepare();
    void split_batch();
    void find_cells();
    void allocate(const llama_snapkv_plan & plan);
    void drop();
    void open_vault();
    uint32_t n_new_min() const;
    uint32_t n_tail() const;
    void load_rows(uint32_t ig);
    void save_rows();
    void rows_to_positions();
    void begin_group(uint32_t ig);
    void begin_chunk(uint32_t i);
    void compute_chunk(uint32_t ig, uint32_t i);
    void land(flight & f);
    void land_all();
    void take_logits(const flight & f);

    ggml_cgraph * build_chunk(ggml_context * gctx, llm_graph_result & res, uint32_t ig, uint32_t i);
    void save_queries(ggml_context * gctx, ggml_cgraph * gf, const llama_snapkv_layer & layer, ggml_tensor * attn, uint32_t i) const;

    llama_kv_cache_context & base_mctx();
    static bool on_abort_poll(void * data);
    bool report();

    bool is_last(uint32_t i) const { return i + 1 == ubatches.size(); }
    bool is_last_group(uint32_t ig) const { return ig + 1 == groups.count(); }

    llama_context & ctx;
    llama_snapkv & sk;
    const llama_snapkv_prompt & prompt;
    const llama_seq_id seq_id;
    const uint32_t n;       // rows: cells that go before the tokens, and tokens
    const llama_pos shift;  // position of a computed token - its row
    const uint32_t w;       // window
    uint32_t n_kept;        // prefix rows for each KV head
    const llama_snapkv_memory mem; // base: the compact cache
    uint32_t n_past;        // first rows, whose K and V come from cells or from the vault

    llama_snapkv_groups groups;
    llama_snapkv_place place;
    llama_snapkv_plan plan;
    llama_snapkv_runner runner;
    llama_snapkv_staging staging;
    llama_snapkv_inputs inputs;
    std::unique_ptr<llama_snapkv_lent_weights> weights; // null: all weights are where their layers are computed
    std::unique_ptr<llama_snapkv_compressor> compressor;

    llama_snapkv_vault * vault = nullptr; // null: none is wanted
    llama_snapkv_vault::segment added;    // what this prefill adds to it

    llama_batch_allocr balloc;
    std::vector<llama_ubatch> ubatches;
    std::vector<uint32_t> starts; // first position of each ubatch

    llama_kv_cache::slot_info_vec_t sinfos_base;
    llama_kv_cache::slot_info_vec_t sinfos_swa;
    std::unique_ptr<llama_kv_cells> cells_swa; // before the tokens, for each group
    llama_kv_cache::slot_info target; // contiguous cells of the kept rows in the compact cache
    llama_memory_context_ptr mctx;

    // so many, that the device always has a graph to go on with
    flight flights[3];
    uint32_t n_started = 0;

    std::vector<llama_snapkv_layer> layers; // of the current group
    std::shared_ptr<llama_snapkv_record> record;
    const llama_snapkv_record_ptr before; // of the cells that go before, null if each one's position is its token's

    uint64_t done = 0;
    int64_t t_last_report_us = 0;
    bool stop = false;

    ggml_abort_callback saved_abort;
    void * saved_abort_data;
    bool base_swapped = false;
    bool finished = false;
};
