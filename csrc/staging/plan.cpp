#include "staging/plan.h"

#include "graph/cut.h"
#include "staging/staging.h"

#include "upstream/access.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <numeric>
#include <set>

using access = llama_snapkv_access;

static constexpr uint32_t MIN_CHUNK = 64;

// a prompt that is dealt to several GPUs has so many chunks at least: fewer would hardly be computed at the same time, and weights are
// lent for each prompt
static constexpr uint32_t MIN_CHUNKS_DEALT = 8;
static constexpr uint32_t MAX_LAYERS_DEALT = 4; // to each GPU
static constexpr uint32_t ROWS_DEALT = 131072;

llama_snapkv_groups::llama_snapkv_groups(const llama_model & model, const llama_kv_cache & base) :
    n_layer((int32_t) model.hparams.n_layer()) {
    for (const auto & layer : access::layers(base)) {
        ils.push_back((int32_t) layer.il);
        readers.push_back(llama_snapkv_readers(base, ils.back()));
    }
}

namespace {

// bytes on the device
struct sizes {
    size_t layer = 0;     // full KV of a cached layer, and its queries of the window
    size_t hidden_row = 0; // hidden state of a token
    size_t mask_row = 0;  // mask of a token of a chunk, and its copy where there is one
    size_t compute_row = 0; // compute buffers for a token of a chunk
    size_t state = 0; // copy of a recurrent layer's
    size_t votes = 0; // scratch of scoring
    size_t widened = 0; // f16 copy of a layer's quantized KV, which attention makes
    size_t weights = 0; // of the layer that has most, where it is lent from another GPU
    uint32_t n_gpus = 0; // that compute at the same time, if there are several
    uint32_t most_layers = UINT32_MAX; // of the cached ones, on one of these

    size_t of(const llama_snapkv_plan & plan, uint32_t n_layer, uint32_t n_prompt) const {
        const size_t slots = hidden_row * 2 * plan.chunk;
        const size_t hidden = (plan.group >= n_layer ? 0 : plan.hidden_host ? slots
                                                                            : hidden_row * n_prompt) +
                (n_gpus > 0 ? slots : 0);
        const size_t of_layers = plan.deals ? (plan.group + n_gpus - 1) / n_gpus * (layer + weights) : std::min(plan.group, most_layers) * layer;
        return of_layers + hidden + (size_t) plan.chunk * (mask_row + compute_row) + state + votes + widened + LLAMA_SNAPKV_MARGIN;
    }
};

} // namespace

// elements of a token that a layer has at its largest moment, on the safe side
static size_t n_elements(const llama_model & model, int32_t il) {
    const auto & hparams = model.hparams;
    const bool is_recurrent = hparams.is_recr(il);
    size_t n_mix = 0; // of a recurrent layer
    if (is_recurrent) {
        // convolved three times as queries, keys and values; of Mamba all heads thrice beside them
        const size_t n_conv = std::max<size_t>(1, hparams.n_shortconv_l_cache ? hparams.n_shortconv_l_cache - 1 : std::max(hparams.ssm_d_conv, 1u) - 1);
        const bool is_delta = model.arch == LLM_ARCH_QWEN35 || model.arch == LLM_ARCH_QWEN35MOE || model.arch == LLM_ARCH_QWEN3NEXT;
        n_mix = 3 * hparams.n_embd_r() / n_conv + (is_delta ? 0 : 3 * (size_t) hparams.ssm_d_inner);
    }
    // Mixtral has one length for a dense layer and for experts
    const size_t n_used = hparams.n_expert > 0 ? hparams.n_expert_used(il) : 0;
    const size_t n_ff_exp = hparams.n_ff_exp(il);
    const size_t n_ff = std::max(hparams.n_ff(il) * (n_ff_exp ? 1 : std::max<size_t>(1, n_used)), n_ff_exp * std::max<size_t>(1, n_used));
    const size_t n_feed_forward = 3 * n_ff + 2 * n_used * hparams.n_embd; // and what each expert gives, before and after it is weighted
    const bool attends = (!is_recurrent || model.arch == LLM_ARCH_FALCON_H1) && hparams.n_head_kv(il) > 0;
    const size_t n_q = attends ? (size_t) hparams.n_head(il) * hparams.n_embd_head_k(il) : 0;
    return std::max(n_feed_forward, n_mix) + 4 * n_q + 4 * (size_t) hparams.n_embd;
}

// bytes of weights
static size_t largest_layer(const llama_model & model) {
    std::map<int, size_t> bytes;
    for (const auto & [name, t] : model.tensors_by_name) {
        int il = 0;
        if (sscanf(name.c_str(), "blk.%d.", &il) == 1) {
            bytes[il] += ggml_nbytes(t);
        }
    }
    return std::accumulate(bytes.begin(), bytes.end(), (size_t) 0, [](size_t most, const auto & layer) { return std::max(most, layer.second); });
}

static sizes measure(llama_context & ctx, const llama_snapkv_memory & mem, const llama_snapkv_params & params, const llama_snapkv_groups & groups,
        const llama_snapkv_place & place, uint32_t n_prompt) {
    const auto & hparams = ctx.get_model().hparams;
    const size_t n_max = GGML_PAD(n_prompt, LLAMA_SNAPKV_N_KV_PAD);

    sizes res;
    res.layer = llama_snapkv_full_bytes(*mem.base, (uint32_t) n_max) / groups.ils.size();
    res.hidden_row = llama_snapkv_hidden_size(ctx.get_model()) * sizeof(float);
    res.mask_row = (n_max + ctx.n_ubatch() + 2 * LLAMA_SNAPKV_N_KV_PAD) * sizeof(ggml_fp16_t);
    res.mask_row += place.reads_mask_stride ? 0 : n_max * sizeof(ggml_fp16_t);
    for (int32_t il = 0; il < groups.n_layer; ++il) {
        res.compute_row = std::max(res.compute_row, n_elements(ctx.get_model(), il) * sizeof(float));
    }
    res.state = mem.recr ? (hparams.n_embd_r() + hparams.n_embd_s()) * sizeof(float) : 0;
    // CUDA's does for prompts (ggml_cuda_flash_attn_ext_get_alloc_size()); others may not
    for (const auto & layer : access::layers(*mem.base)) {
        const bool is_quantized = ggml_is_quantized(layer.k->type) && llama_snapkv_is_gpu(place.devs[layer.il]);
        const size_t row = layer.k->ne[0] + (layer.v ? layer.v->ne[0] : 0);
        res.widened = std::max(res.widened, is_quantized ? n_max * row * sizeof(ggml_fp16_t) : 0);
    }
    size_t queries = 0;
    for (const int32_t il : groups.ils) {
        const size_t n_voters = llama_snapkv_n_head(ctx.get_model(), *mem.base, il);
        queries = std::max(queries, n_voters * hparams.n_embd_head_k(il) * params.window_size * sizeof(float));
        // of stock ops, for one head: K in f32, and three times the attention of the window's rows
        const size_t rows = (size_t) params.window_size * n_voters / hparams.n_head_kv(il);
        const size_t stock = n_max * (hparams.n_embd_head_k(il) + 3 * rows) * sizeof(float);
        const size_t fused = n_max * 2 * hparams.n_head_kv(il) * sizeof(float);
        res.votes = std::max(res.votes, params.ops == LLAMA_SNAPKV_OPS_FUSED ? fused : stock);
    }
    res.layer += queries;
    res.n_gpus = (uint32_t) place.gpus.size();
    if (res.n_gpus > 0) {
        res.weights = largest_layer(ctx.get_model());
        std::map<ggml_backend_dev_t, uint32_t> n_cached;
        res.most_layers = 0;
        for (const int32_t il : groups.ils) {
            res.most_layers = std::max(res.most_layers, ++n_cached[place.homes[il]]);
        }
    }
    return res;
}

// layers of a group that is dealt to several GPUs; 0: none is
static uint32_t dealt_group(const llama_snapkv_params & params, const llama_snapkv_place & place, uint32_t n_layer, uint32_t chunk, uint32_t n_prompt) {
    const auto n_gpus = (uint32_t) place.gpus.size();
    if (n_gpus < 2 || n_prompt < MIN_CHUNKS_DEALT * chunk) {
        return 0;
    }
    // one on each GPU; of a prompt that is not so long several, since the host takes as long to start their graph
    const uint32_t each = std::max(1u, std::min(MAX_LAYERS_DEALT, ROWS_DEALT / n_prompt));
    const uint32_t group = params.layer_group ? params.layer_group : std::min(n_gpus * each, place.max_dealt);
    return group > 1 && group <= place.max_dealt && group < n_layer ? group : 0;
}

std::vector<llama_snapkv_plan> llama_snapkv_make_plans(llama_context & ctx, const llama_snapkv_memory & mem, const llama_snapkv_params & params,
        const llama_snapkv_groups & groups, const llama_snapkv_place & place, uint32_t n_prompt) {
    const uint32_t n_layer = (uint32_t) groups.ils.size();
    const sizes bytes = measure(ctx, mem, params, groups, place, n_prompt);
    auto make = [&](uint32_t group, uint32_t chunk, bool host, bool deals = false) {
        llama_snapkv_plan p;
        p.group = group;
        p.chunk = chunk;
        p.hidden_host = host;
        p.deals = deals;
        p.bytes = bytes.of(p, n_layer, n_prompt);
        return p;
    };

    // the smallest plan that is within 3 % of the fastest where memory matters. with groups of one layer the prefill is, on CPUs
    // and, with long prompts, on GPUs (results/); with all layers at once it has no hidden state, which may be larger than the full KV of a few layers
    uint32_t chunk = std::min(params.n_ubatch ? params.n_ubatch : ctx.n_ubatch(), n_prompt);
    uint32_t group = std::min(params.layer_group ? params.layer_group : 1, place.max_group);
    const bool selects = params.prefill == LLAMA_SNAPKV_PREFILL_SELECTIVE; // between groups
    const uint32_t dealt = dealt_group(params, place, n_layer, chunk, n_prompt);
    if (params.layer_group == 0 && !selects && params.hidden_state != LLAMA_SNAPKV_HIDDEN_STATE_HOST && place.max_group >= n_layer && make(n_layer, chunk, false).bytes <= (dealt ? make(dealt, chunk, false, true) : make(1, chunk, false)).bytes) {
        group = n_layer;
    }
    if (!llama_snapkv_is_gpu(place.devs[groups.ils[0]])) {
        return { make(group, chunk, false) };
    }

    // less memory beside a GPU: the hidden state on the host, then smaller chunks
    std::vector<llama_snapkv_plan> plans;
    auto add = [&](uint32_t first, uint32_t smaller, bool deals) {
        for (uint32_t n = chunk;; n = std::max(n / 2, MIN_CHUNK)) {
            if (params.hidden_state != LLAMA_SNAPKV_HIDDEN_STATE_HOST) {
                plans.push_back(make(first, n, false, deals));
            }
            if (params.hidden_state == LLAMA_SNAPKV_HIDDEN_STATE_HOST || (params.hidden_state == LLAMA_SNAPKV_HIDDEN_STATE_AUTO && smaller < n_layer)) {
                plans.push_back(make(smaller, n, true, deals));
            }
            if (params.n_ubatch != 0 || n <= MIN_CHUNK) {
                break;
            }
        }
    };
    if (dealt && group < n_layer) {
        add(dealt, dealt, true);
    }
    add(group, params.layer_group ? group : 1, false);

    // of several devices the one with least decides: each may get all layers of a group, and the first one has the hidden state
    size_t free = SIZE_MAX;
    const std::set<ggml_backend_dev_t> devs(place.devs.begin(), place.devs.end());
    for (ggml_backend_dev_t dev : devs) {
        size_t free_there = 0;
        size_t total = 0;
        ggml_backend_dev_memory(dev, &free_there, &total);
        free = llama_snapkv_is_gpu(dev) ? std::min(free, free_there) : free;
    }
    const auto smallest = *std::min_element(plans.begin(), plans.end(), [](const auto & a, const auto & b) { return a.bytes < b.bytes; });
    plans.erase(std::remove_if(plans.begin(), plans.end(), [&](const auto & p) { return p.bytes > free; }), plans.end());
    if (plans.empty()) {
        plans.push_back(smallest); // the estimate is on the safe side
    }
    return plans;
}
