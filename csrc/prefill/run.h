// One prefill, layer group by layer group. Its parts are in prefill/prefill.cpp (plans, memory, the order of things),
// prefill/chunks.cpp (graphs of chunks on the device) and prefill/select.cpp (rows that go on).
#pragma once

#include "evict/compressor.h"
#include "evict/positions.h"
#include "evict/selection.h"
#include "graph/runner.h"
#include "prefill/batches.h"
#include "prefill/flights.h"
#include "prefill/others.h"
#include "prefill/progress.h"
#include "prefill/rows.h"
#include "staging/inputs.h"
#include "staging/place.h"
#include "staging/plan.h"
#include "staging/staging.h"
#include "staging/weights.h"
#include "state/task.h"

#include <map>
#include <memory>
#include <vector>

// one prefill; its destructor leaves the context as an ordinary one, whatever happened
class llama_snapkv_prefill_run {
public:
    llama_snapkv_prefill_run(llama_context & ctx, llama_snapkv & sk, const llama_snapkv_task & task);
    ~llama_snapkv_prefill_run();

    llama_snapkv_prefill_run(const llama_snapkv_prefill_run &) = delete;
    llama_snapkv_prefill_run & operator=(const llama_snapkv_prefill_run &) = delete;

    void run();

private:
    void prepare();
    void allocate();
    void drop();

    void begin_group(uint32_t ig);
    void begin_chunk(uint32_t i);
    void compute_chunk(uint32_t ig, uint32_t i);
    void compute_stage(uint32_t ig, uint32_t i, uint32_t s);
    void reserve(uint32_t ig, uint32_t i);
    // the graph of a stage of a group, which has these
    ggml_cgraph * build_chunk(ggml_context * gctx, llm_graph_result & res, const std::vector<llama_snapkv_stage> & of_group, uint32_t s, uint32_t ig, uint32_t i);
    bool passes_on(size_t n_stages, uint32_t s, uint32_t ig, uint32_t i) const; // does a stage's hidden state of a chunk go anywhere?
    size_t max_input_bytes(uint32_t i) const; // of chunks up to this one
    void save_queries(ggml_context * gctx, ggml_cgraph * gf, const llama_snapkv_layer & layer, const ggml_tensor * attn, int64_t head0, uint32_t i) const;
    void take_logits(const llm_graph_result & res);

    uint32_t n_tail() const;
    void select(uint32_t ig);
    void begin_chunks(uint32_t ig, uint32_t n_chunk, const std::vector<uint32_t> & stops);
    void look_ahead(uint32_t ig);
    void join_tails();
    bool is_tail(uint32_t i) const { return batches.end(i) > task.n_rows() - task.n_queries(); } // of a chunk
    void rows_to_positions();

    bool is_last_group(uint32_t ig) const { return ig + 1 == groups.count(); }

    llama_context & ctx;
    llama_snapkv & sk;
    llama_snapkv_task task;
    const llama_seq_id seq_id;
    const llama_snapkv_memory mem; // base: the compact cache
    llama_snapkv_positions positions;
    llama_snapkv_selection selection;

    llama_snapkv_groups groups;
    llama_snapkv_place place;
    llama_snapkv_plan plan;

    llama_snapkv_runner runner;
    llama_snapkv_progress progress;
    llama_snapkv_flights flights;
    llama_snapkv_batches batches;
    llama_snapkv_others others;
    std::unique_ptr<llama_snapkv_known_rows> known;

    llama_snapkv_staging staging;
    llama_snapkv_inputs inputs;
    bool sets_inputs = false; // does the graph that was built last have inputs to be set?
    uint32_t ig_inputs = 0; // first group whose chunks have these
    bool ahead = false; // the layers to come are computed for their votes only
    std::unique_ptr<llama_kv_cells> cells_before; // of sliding-window layers, at the selection
    uint32_t head_before = 0;
    std::map<ggml_backend_dev_t, llama_snapkv_lent_weights> weights; // by who gets them; none: all are where their layers are computed
    std::unique_ptr<llama_snapkv_compressor> compressor;

    llama_kv_cache::slot_info target; // contiguous cells of the kept rows in the compact cache
    std::vector<llama_snapkv_stage> stages; // of the current group
    std::vector<llama_snapkv_layer> layers; // and its
    std::shared_ptr<llama_snapkv_record> record;

    bool finished = false;
};
