#include "prefill/support.h"

#include "evict/stock.h"
#include "graph/cut.h"
#include "staging/plan.h"
#include "state/cells.h"
#include "state/params.h"
#include "upstream/access.h"
#include "upstream/devices.h"
#include "upstream/layout.h"
#include "upstream/snapkv-alloc.h"

#include "llama-cpp.h"
#include "llama-impl.h"
#include "llama-kv-cache-dsa-iswa.h"
#include "llama-kv-cache-dsa.h"
#include "llama-kv-cache-dsv4.h"
#include "llama-kv-cache-msa.h"
#include "llama-memory-hybrid-idx.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-recurrent.h"

#include "ggml-cpp.h"

#include <algorithm>
#include <cstring>
#include <set>

using access = llama_snapkv_access;

static constexpr uint32_t N_PROBE_CELLS = 64;
static constexpr uint32_t N_PROBE_TOKENS = 8;

std::string llama_snapkv_check_memory(const llama_model & model, const llama_snapkv_memory & mem, const llama_snapkv_params & params) {
    if (mem.recr && mem.recr->n_rs_seq > 0) {
        return format("n_rs_seq %u asks for earlier states of recurrent layers, and a prefill keeps none: set it to 0", mem.recr->n_rs_seq);
    }
    const bool selects = params.prefill == LLAMA_SNAPKV_PREFILL_SELECTIVE;
    if (!selects && params.recall_every == 0) {
        return "";
    }
    for (uint32_t il = 0; il < model.hparams.n_layer() && !llama_snapkv_tries_unproven(); ++il) {
        const auto dev = model.dev_layer((int) il);
        const auto backend = llama_snapkv_backend_of(dev);
        // of recall with latent attention nobody has seen the tests end on a GPU
        const bool is_latent = model.hparams.is_mla() && ggml_backend_dev_type(dev) != GGML_BACKEND_DEVICE_TYPE_CPU;
        if (selects ? !backend.proven_selective : !backend.proven_recall || is_latent) {
            const char * what = is_latent ? "a recall while answering with latent attention" : "a recall while answering";
            return format("nobody has run %s on %s (ggml's backend %s): set %s, compute on the CPU (n_gpu_layers 0), "
                          "or set the environment variable %s=1 to try it",
                    selects ? "a selective prefill" : what, ggml_backend_dev_name(dev), ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev)),
                    selects ? "prefill to exact" : "recall_every to 0", LLAMA_SNAPKV_UNPROVEN);
        }
    }
    if (!selects) {
        return "";
    }
    if (mem.recr) {
        return "a selective prefill gives later layers some of the rows, and the state of a recurrent layer is of all rows before: set prefill to exact";
    }
    if (llama_snapkv_hidden_size(model) != model.hparams.n_embd) {
        return "a selective prefill takes rows out of the hidden state, and this model's layers pass several on, not side by side: set prefill to exact";
    }
    const size_t n_cached = access::layers(*mem.base).size();
    if (n_cached <= std::max(1u, params.layer_group)) {
        return format("a selective prefill chooses rows between two layer groups, and with layer_group %u the %zu cached layers are one: make it smaller, or set prefill to exact",
                params.layer_group, n_cached);
    }
    return "";
}

static std::string check_model(const llama_model & model, const llama_context_params & cparams) {
    const auto & hparams = model.hparams;
    if (hparams.vocab_only) {
        return "only the model's vocabulary is loaded: load it without vocab_only";
    }
    if (llama_model_has_encoder(&model)) {
        return "encoder and encoder-decoder models have no prompt in a KV cache";
    }
    if (llama_model_is_recurrent(&model)) {
        return "recurrent models have no KV cache: there is nothing to compress";
    }
    if (cparams.flash_attn_type == LLAMA_FLASH_ATTN_TYPE_DISABLED) {
        return "flash attention is off: SnapKV reads queries and keys from flash-attention nodes; turn it on";
    }
    if (model.arch == LLM_ARCH_GROK) {
        return "llama.cpp has no flash attention for Grok, from whose nodes queries and keys are read: it would take that";
    }
    if (cparams.embeddings) {
        return "the context is for embeddings: SnapKV compresses prompts for generation";
    }
    if (model.split_mode() == LLAMA_SPLIT_MODE_TENSOR) {
        return "models split by tensor over several devices are not supported: use split mode layer";
    }
    return "";
}

// what llama.cpp ends the process for
static std::string check_sequences(const llama_model & model, const llama_context_params & cparams) {
    const uint32_t n_seq_max = std::max(1u, cparams.n_seq_max);
    if (n_seq_max > LLAMA_MAX_SEQ) {
        return format("n_seq_max %u is more than llama.cpp's %d: make it smaller", n_seq_max, LLAMA_MAX_SEQ);
    }
    // as llama_context makes them of the parameters, before it rounds n_ctx up
    const uint32_t n_ctx = cparams.n_ctx == 0 ? model.hparams.n_ctx_train : cparams.n_ctx;
    const uint32_t n_batch = std::min(n_ctx, cparams.n_batch);
    const uint32_t n_ubatch = std::min(n_batch, cparams.n_ubatch == 0 ? n_batch : cparams.n_ubatch);
    if (n_ctx < n_seq_max) {
        return format("n_ctx %u is less than n_seq_max %u, and each sequence needs a place in a batch, which has no more tokens: make n_ctx larger", n_ctx, n_seq_max);
    }
    if (n_batch < n_seq_max) {
        return format("n_batch %u is less than n_seq_max %u, and each sequence needs a place in a batch: make n_batch larger", n_batch, n_seq_max);
    }
    if (cparams.n_outputs_max != 0 && cparams.n_outputs_max < n_seq_max) {
        return format("n_outputs_max %u is less than n_seq_max %u: make it larger", cparams.n_outputs_max, n_seq_max);
    }
    if ((model.arch == LLM_ARCH_MINIMAX_01 || model.arch == LLM_ARCH_KIMI_LINEAR) && n_ubatch % n_seq_max != 0) {
        return format("a ubatch has %u tokens (n_ubatch, or what n_batch and n_ctx leave of it), no multiple of n_seq_max %u, as %s needs it in llama.cpp: make it one", n_ubatch, n_seq_max, llm_arch_name(model.arch));
    }
    return "";
}

static const ggml_tensor * root(const ggml_tensor * t) {
    return t->view_src ? t->view_src : t;
}

static std::string check_layer(llama_context & ctx, const llama_snapkv_memory & mem, const llm_graph_result & res, int32_t il) {
    const auto & hparams = ctx.get_model().hparams;
    const auto & cache = access::layer(*mem.base, il);

    const ggml_tensor * attn = llama_snapkv_graph_attn(res, il);
    if (!attn) {
        return format("layer %d does not have exactly one flash-attention node", il);
    }
    float max_bias;
    memcpy(&max_bias, (const float *) attn->op_params + 1, sizeof(float));
    if (max_bias != 0.0f) {
        return "ALiBi biases follow the positions of rows, which differ by KV head after eviction: it would take a mask for each KV head";
    }
    for (const ggml_tensor * t : { cache.k, cache.v }) {
        if (t && t->type == GGML_TYPE_F32) {
            return "attention rounds a KV cache in f32 to f16: use the KV cache type f16";
        }
    }
    // with MLA a row of the cache is latent and RoPE part, K of all heads, and its latent is V
    if (root(attn->src[1]) != cache.k || root(attn->src[2]) != (cache.v ? cache.v : cache.k)) {
        return format("layer %d attends to something else than its own KV cache", il);
    }
    if (!attn->src[3] || attn->src[3]->type != GGML_TYPE_F16 || !(attn->src[3]->flags & GGML_TENSOR_FLAG_INPUT)) {
        return format("layer %d has a mask of its own kind", il);
    }
    if (attn->src[4] && !attn->src[4]->buffer) {
        return format("layer %d computes its attention sinks", il);
    }
    const int64_t n_head_kv = attn->src[1]->ne[2];
    if (attn->src[0]->ne[2] % n_head_kv != 0) {
        return format("layer %d has %d query heads for %d KV heads", il, (int) attn->src[0]->ne[2], (int) n_head_kv);
    }
    for (const ggml_tensor * t : access::tensors(cache, 0)) {
        if (!llama_snapkv_can_evict(t, n_head_kv)) {
            return format("a head of %u elements in %s is not a multiple of 4 bytes, and cannot be copied as it is: use another KV cache type, such as f16",
                    t == cache.k_stream[0] ? hparams.n_embd_head_k(il) : hparams.n_embd_head_v(il), ggml_type_name(t->type));
        }
    }
    return "";
}

// layers that share one's KV have to run while all of it is there, in its group, whatever G is
static std::string check_sharing(const llama_snapkv_groups & groups, const llama_kv_cache & kv) {
    const auto group_of = [&](int32_t il) {
        uint32_t ig = 0;
        while (il >= groups.il1(ig)) {
            ++ig;
        }
        return ig;
    };
    for (const auto & layer : access::layers(kv)) {
        for (const int32_t il : llama_snapkv_readers(kv, (int32_t) layer.il)) {
            if (group_of(il) != group_of((int32_t) layer.il)) {
                return format("layer %d shares the KV of layer %d, and cached layers lie between them", il, (int32_t) layer.il);
            }
        }
    }
    return "";
}

// their queries are scored as those of one layer
static std::string check_readers(const llm_graph_result & res, const std::vector<int32_t> & readers) {
    const ggml_tensor * owner = llama_snapkv_graph_attn(res, readers[0]);
    for (size_t i = 1; i < readers.size(); ++i) {
        const ggml_tensor * attn = llama_snapkv_graph_attn(res, readers[i]);
        // scale, ALiBi, softcap
        if (memcmp(attn->op_params, owner->op_params, 3 * sizeof(float)) != 0 || attn->src[4] || owner->src[4]) {
            return format("layer %d shares the KV of layer %d, and attends with another scale or softcap, or with sinks", readers[i], readers[0]);
        }
    }
    return "";
}

static std::string check_graph(llama_context & ctx, const llama_snapkv_memory & mem) {
    const auto & model = ctx.get_model();
    const auto & hparams = model.hparams;
    const int32_t n_layer = (int32_t) hparams.n_layer();
    const int64_t hidden_size = llama_snapkv_hidden_size(model);

    const llama_snapkv_groups groups(model, *mem.base);
    if (groups.ils.empty()) {
        return "the model has no layer with full attention: its KV cache is bounded already";
    }
    std::string sharing = check_sharing(groups, *mem.base);
    if (sharing.empty() && mem.iswa) {
        sharing = check_sharing(groups, *mem.iswa->get_swa());
    }
    if (!sharing.empty()) {
        return sharing;
    }

    llama_memory_context_ptr mctx = ctx.get_memory()->init_full();
    llama_batch_allocr balloc(hparams.n_pos_per_embd());
    llama_ubatch ubatch = balloc.ubatch_reserve(N_PROBE_TOKENS, 1);
    llm_graph_result res(ctx.graph_max_nodes(N_PROBE_TOKENS) + 1024);

    const uint32_t n_outputs = access::n_outputs(ctx);
    access::n_outputs(ctx) = 1;

    std::string reason;
    // each group of one cached layer is a cut that any G may make
    for (uint32_t ig = 0; ig < groups.count() && reason.empty(); ++ig) {
        res.reset();
        auto params = access::graph_params(ctx, &res, ubatch, mctx.get());
        params.cb = [](const llama_ubatch &, ggml_tensor *, const char *, int) {};
        llama_snapkv_graph graph = llama_snapkv_graph_build(model, params, n_layer);

        if (ig == 0) {
            for (const auto & node : res.get_fused_nodes()) {
                const bool is_cached = access::map_layer_ids(*mem.base).count(node.il) ||
                        (mem.iswa && access::map_layer_ids(*mem.iswa->get_swa()).count(node.il));
                if (node.op == LLM_FUSED_OP_FLASH_ATTN && !is_cached) {
                    reason = format("layer %d attends outside of the KV cache", node.il);
                }
            }
            for (const auto & readers : groups.readers) {
                for (const int32_t il : readers) {
                    reason = reason.empty() ? check_layer(ctx, mem, res, il) : reason;
                }
                reason = reason.empty() ? check_readers(res, readers) : reason;
            }
        }

        llama_snapkv_gctx gctx(256 * ggml_tensor_overhead() + ggml_graph_overhead_custom(res.get_max_nodes(), false));
        llama_snapkv_cut_params cut;
        cut.il0 = groups.il0(ig);
        cut.il1 = groups.il1(ig);
        auto hidden = [&](int32_t il) -> ggml_tensor * {
            const ggml_tensor * t = graph.l_out[il];
            if (!t || t->type != GGML_TYPE_F32 || !ggml_is_contiguous(t) || t->ne[0] != hparams.n_embd || t->ne[1] != N_PROBE_TOKENS || ggml_nelements(t) != hidden_size * N_PROBE_TOKENS) {
                reason = reason.empty() ? format("the output of layer %d is not one hidden state for each token", il) : reason;
                return nullptr;
            }
            return ggml_new_tensor_2d(gctx.get(), GGML_TYPE_F32, hidden_size, N_PROBE_TOKENS);
        };
        if (ig > 0) {
            cut.hidden_in = hidden(cut.il0 - 1);
        }
        if (ig + 1 < groups.count()) {
            cut.hidden_out = hidden(cut.il1 - 1);
        }
        if (reason.empty()) {
            ggml_cgraph * gf = ggml_new_graph_custom(gctx.get(), res.get_max_nodes(), false);
            if (llama_snapkv_graph_cut(gctx.get(), gf, graph, cut) > 0) {
                reason = format("layers from %d to %d need attention of other layers: it would take layer groups that follow the model's loops", cut.il0, cut.il1 - 1);
            }
        }
    }

    access::n_outputs(ctx) = n_outputs;
    return reason;
}

// caches that hold more than rows of tokens: why they are refused, and what they would take
static std::string refused_memory(llama_memory_t memory) {
    if (dynamic_cast<llama_kv_cache_dsa *>(memory) || dynamic_cast<llama_kv_cache_dsa_iswa *>(memory) || dynamic_cast<llama_memory_hybrid_idx *>(memory)) {
        return "the model attends to rows that an index chooses, whose keys lie in a cache of their own: it would take an eviction from both, and votes of what the index leaves out";
    }
    if (dynamic_cast<llama_kv_cache_msa *>(memory)) {
        return "the model attends to blocks that an index chooses by their positions: it would take blocks of rows whose positions are apart";
    }
    if (dynamic_cast<llama_kv_cache_dsv4 *>(memory)) {
        return "the model's cache has blocks of tokens in one row beside a sliding window: it would take votes for blocks";
    }
    if (dynamic_cast<llama_memory_hybrid_iswa *>(memory)) {
        return "the model has recurrent layers and sliding windows: it would take layer groups with both";
    }
    return "the model's KV cache is of a kind of its own, which nobody has looked at";
}

std::string llama_snapkv_check_recall(const llama_snapkv_params & params, uint32_t n_seq_max, bool kv_unified) {
    if (params.recall_every == 0 || n_seq_max == 1 || !kv_unified) {
        return "";
    }
    return format("a recall asks for one sequence's tokens, and %u share cells here: set kv_unified to false, n_seq_max to 1, or recall_every to 0", n_seq_max);
}

std::string llama_snapkv_check_support(llama_model & model, llama_context_params cparams, const llama_snapkv_params & params) {
    std::string reason = llama_snapkv_check_params(params);
    if (reason.empty()) {
        reason = llama_snapkv_check_layout(model);
    }
    if (reason.empty()) {
        reason = check_model(model, cparams);
    }
    if (reason.empty()) {
        reason = check_sequences(model, cparams);
    }
    if (reason.empty()) {
        reason = llama_snapkv_check_recall(params, cparams.n_seq_max, cparams.kv_unified);
    }
    if (reason.empty()) {
        reason = llama_snapkv_check_devices(model, cparams);
    }
    if (!reason.empty()) {
        return reason;
    }

    cparams.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    cparams.n_batch = N_PROBE_TOKENS;
    cparams.n_ubatch = N_PROBE_TOKENS;
    cparams.n_seq_max = 1; // the probe's graph is of one sequence, as a prefill's are
    cparams.n_outputs_max = 1;
    cparams.samplers = nullptr;
    cparams.n_samplers = 0;

    llama_snapkv_cells_scope scope(N_PROBE_CELLS, true);
    llama_context_ptr ctx(llama_init_from_model(&model, cparams));
    if (!ctx) {
        return "llama.cpp cannot make a context for this model with these parameters (its log has the reason)";
    }
    if (!ctx->get_memory()) {
        return "the model has no KV cache (an embedding or diffusion model): there is nothing to compress";
    }
    if (!ctx->get_cparams().causal_attn) {
        return "attention is not causal";
    }
    const auto mem = llama_snapkv_memory_of(*ctx);
    if (!mem.base) {
        return refused_memory(ctx->get_memory());
    }
    reason = llama_snapkv_check_memory(model, mem, params);
    return reason.empty() ? check_graph(*ctx, mem) : reason;
}

bool llama_snapkv_has_fused_ops(const char * device) {
    ggml_backend_dev_t dev = ggml_backend_dev_by_name(device);
    if (!dev) {
        return false;
    }
    ggml_context_ptr gctx(ggml_init({ 16 * ggml_tensor_overhead(), nullptr, true }));
    const llama_snapkv_params params = llama_snapkv_default_params();
    llama_snapkv_observation obs;
    obs.q = ggml_new_tensor_3d(gctx.get(), GGML_TYPE_F32, 128, llama_snapkv_n_voters(params), 32);
    obs.k = ggml_new_tensor_3d(gctx.get(), GGML_TYPE_F16, 128, 4096, 8);
    return llama_snapkv_supports(dev, llama_snapkv_graph_score_fused(gctx.get(), obs, params, params.window_size, 1024));
}
