// What test programs of recall while answering share: contexts that recall, tokens of several sequences in one batch, and whether the
// kept rows are those of the vault.
#pragma once

#include "llama-cpp.h"
#include "snapkv.h"
#include "test-snapkv-sequences.h"

#include "state/cells.h"
#include "state/context.h"
#include "upstream/access.h"

#include "ggml-backend.h"

#include <cstring>
#include <tuple>

using access = llama_snapkv_access;

static constexpr uint32_t N = 230; // tokens of a prompt
static constexpr uint32_t N_CTX = 512;
static constexpr uint32_t BUDGET = 48;
static constexpr uint32_t WINDOW = 16;
static constexpr uint32_t N_SINK = 2;
static constexpr uint32_t EVERY = 8;
static constexpr uint32_t QUERIES = 3;

static llama_context_params context_params(uint32_t n_seq = 1) {
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = N_CTX * n_seq;
    cp.n_seq_max = n_seq;
    cp.kv_unified = false;
    cp.n_batch = 64;
    cp.n_ubatch = 64;
    cp.n_threads = cp.n_threads_batch = 1;
    cp.no_perf = true;
    return cp;
}

static llama_snapkv_params snapkv_params(uint32_t every = EVERY) {
    llama_snapkv_params sp = llama_snapkv_default_params();
    sp.budget = BUDGET;
    sp.window_size = WINDOW;
    sp.n_sink = N_SINK;
    sp.kernel_size = 3;
    sp.decode_cells = 64;
    sp.vault = true;
    sp.recall_every = every;
    sp.recall_queries = QUERIES;
    sp.recall_rows = 0;
    sp.recall_delay = 0;
    sp.recall_margin = 1.0f; // in models with random weights no row is worth twice as much as another
    return sp;
}

static llama_context_ptr make(llama_model * model, const llama_snapkv_params & sp, const llama_context_params & cp = context_params()) {
    return make_context(model, cp, sp);
}

// tokens of each of these sequences, from its position on, in one batch
struct part {
    llama_seq_id seq_id;
    tokens_t tokens;
    llama_pos pos;
};

static int32_t decode(llama_context * ctx, const std::vector<part> & parts) {
    llama_batch batch = llama_batch_init(256, 0, 1);
    for (const auto & part : parts) {
        for (size_t j = 0; j < part.tokens.size(); ++j) {
            const int32_t i = batch.n_tokens++;
            batch.token[i] = part.tokens[j];
            batch.pos[i] = part.pos + (llama_pos) j;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = part.seq_id;
            batch.logits[i] = j + 1 == part.tokens.size();
        }
    }
    const int32_t rc = llama_snapkv_decode(ctx, batch);
    llama_batch_free(batch);
    return rc;
}

static int32_t decode(llama_context * ctx, const tokens_t & tokens, llama_pos pos) {
    return decode(ctx, { { 0, tokens, pos } });
}

static std::vector<llama_snapkv_recall_event> events(llama_context * ctx, llama_seq_id seq_id = 0) {
    std::vector<llama_snapkv_recall_event> res(llama_snapkv_recalls(ctx, seq_id, nullptr, 0));
    CHECK(llama_snapkv_recalls(ctx, seq_id, res.data(), (uint32_t) res.size()) == res.size());
    return res;
}

static llama_kv_cache & base_of(llama_context * ctx) {
    return *llama_snapkv_memory_of(*ctx).base;
}

// K and V of each cached layer, [n_cells] rows
static std::vector<bytes_t> cells_of(llama_context * ctx, llama_seq_id seq_id = 0) {
    std::vector<bytes_t> res;
    for (const auto & layer : access::layers(base_of(ctx))) {
        for (const ggml_tensor * t : access::tensors(layer, base_of(ctx).get_stream(seq_id))) {
            res.emplace_back(ggml_nbytes(t));
            ggml_backend_tensor_get(t, res.back().data(), 0, res.back().size());
        }
    }
    return res;
}

// are all kept rows the vault's, byte by byte? begin: of the kept rows' cells
static bool holds_vault_bytes(llama_context * ctx, uint32_t & begin, uint32_t & end, llama_seq_id seq_id = 0) {
    const auto & base = base_of(ctx);
    const auto record = base.snapkv.get(seq_id);
    const auto & vault = access::snapkv(*ctx)->vaults.at(seq_id);
    const auto cells = cells_of(ctx, seq_id);
    std::tie(begin, end) = llama_snapkv_cells_before(base, seq_id, record->pos_exact());
    end += begin;
    bool res = end - begin == BUDGET - WINDOW;
    size_t i_tensor = 0;
    for (uint32_t ic = 0; ic < record->layers.size(); ++ic) {
        const auto & kept = record->layers[ic];
        for (const bool is_v : { false, true }) {
            const size_t row = is_v ? vault.layers[ic].row_v : vault.layers[ic].row_k;
            if (row == 0) {
                continue;
            }
            const auto & bytes = cells[i_tensor++];
            const size_t head = row / kept.n_head_kv;
            for (uint32_t h = 0; h < kept.n_head_kv; ++h) {
                for (uint32_t i = 0; i < kept.n_kept; ++i) {
                    const int32_t id = kept.ids[h * kept.n_kept + i];
                    res = res && memcmp(&bytes[(begin + i) * row + h * head], vault.row(is_v, ic, id) + h * head, head) == 0;
                }
            }
        }
    }
    return res;
}
