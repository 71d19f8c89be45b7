// The private members of upstream classes that SnapKV uses. The patched classes name this struct a friend, so the
// compiler shows here what a bump of llama.cpp has to be checked for.
#pragma once

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

struct llama_snapkv_access {
    // llama_context
    static auto & snapkv(llama_context & c) { return c.snapkv; }
    static auto & snapkv(const llama_context & c) { return c.snapkv; }
    static auto & cparams(llama_context & c) { return c.cparams; }
    static auto & sched(llama_context & c) { return c.sched; }
    static auto & sched_need_reserve(llama_context & c) { return c.sched_need_reserve; }
    static auto & backend_ptrs(llama_context & c) { return c.backend_ptrs; }
    static auto & backend_buft(llama_context & c) { return c.backend_buft; }
    static auto & gf_res_prev(llama_context & c) { return c.gf_res_prev; }
    static auto & gf_res_prev_active(llama_context & c) { return c.gf_res_prev_active; }
    static auto & n_outputs(llama_context & c) { return c.n_outputs; }
    static auto & output_ids(llama_context & c) { return c.output_ids; }
    static auto & output_swaps(llama_context & c) { return c.output_swaps; }
    static auto & logits(llama_context & c) { return c.logits; }
    static auto & abort_callback(llama_context & c) { return c.abort_callback; }
    static auto & abort_callback_data(llama_context & c) { return c.abort_callback_data; }
    static auto & n_p_eval(llama_context & c) { return c.n_p_eval; }
    static auto & t_p_eval_us(llama_context & c) { return c.t_p_eval_us; }

    static uint32_t output_reserve(llama_context & c, int32_t n) { return c.output_reserve(n); }

    static llm_graph_params graph_params(llama_context & c, llm_graph_result * res, const llama_ubatch & ubatch, const llama_memory_context_i * mctx) {
        return c.graph_params(res, ubatch, mctx, LLM_GRAPH_TYPE_DEFAULT);
    }

    // llama_kv_cache
    static auto & layers(llama_kv_cache & kv) { return kv.layers; }
    static auto & layers(const llama_kv_cache & kv) { return kv.layers; }
    static const auto & layer(const llama_kv_cache & kv, int32_t il) { return kv.layers[kv.map_layer_ids.at(il)]; } // il: of the model
    // what a layer has in the cache, [n_embd_gqa, n_cells]: K and V, or K alone where V is a part of its rows (MLA)
    template <typename L> static std::vector<ggml_tensor *> tensors(const L & layer, uint32_t stream) {
        return layer.v ? std::vector<ggml_tensor *>{ layer.k_stream[stream], layer.v_stream[stream] } : std::vector<ggml_tensor *>{ layer.k_stream[stream] };
    }
    template <typename L> static size_t row_bytes(const L & layer) { return layer.k->nb[1] + (layer.v ? layer.v->nb[1] : 0); }
    static auto & map_layer_ids(llama_kv_cache & kv) { return kv.map_layer_ids; }
    static auto & map_layer_ids(const llama_kv_cache & kv) { return kv.map_layer_ids; }
    static auto & v_cells(llama_kv_cache & kv) { return kv.v_cells; }
    static auto & v_heads(llama_kv_cache & kv) { return kv.v_heads; }
    static bool v_trans(const llama_kv_cache & kv) { return kv.v_trans; }
    static uint32_t n_pad(const llama_kv_cache & kv) { return kv.n_pad; }

    // llama_kv_cache_context
    static auto & kv(llama_kv_cache_context & mctx) { return mctx.kv; }
    static auto & n_kv(llama_kv_cache_context & mctx) { return mctx.n_kv; }
};
