// Defaults, limits, and what follows from the parameters.
#include "state/params.h"

#include "llama-impl.h"

#include <algorithm>
#include <cmath>

llama_snapkv_params llama_snapkv_default_params(void) {
    llama_snapkv_params params = {};
    params.size = sizeof(params);
    params.budget = 2048;
    params.keep_ratio = 0.0f;
    params.window_size = 32;
    params.observation = 0;
    params.kernel_size = 21;
    params.pooling = LLAMA_SNAPKV_POOLING_NOSINK;
    params.aggregation = LLAMA_SNAPKV_AGGREGATION_MAX;
    params.self_weight = 0.25f;
    params.n_sink = 0;
    params.min_coverage = 0.0f;
    params.max_budget = 0;
    params.decode_cells = 1024;
    params.layer_group = 0;
    params.hidden_state = LLAMA_SNAPKV_HIDDEN_STATE_AUTO;
    params.n_ubatch = 0;
    params.ops = LLAMA_SNAPKV_OPS_AUTO;
    params.keep_scores = false;
    params.vault = false;
    params.vault_limit = 0;
    params.prefill = LLAMA_SNAPKV_PREFILL_EXACT;
    params.select_share = 0.2f;
    params.select_min = 1024;
    params.select_depth = 0.375f;
    params.select_settled = 0.3f;
    params.recall_every = 0;
    params.recall_queries = 4;
    params.recall_rows = 8192;
    params.recall_delay = -1;
    params.recall_margin = 2.0f;
    return params;
}

std::string llama_snapkv_check_params(const llama_snapkv_params & params) {
    if (params.size != sizeof(llama_snapkv_params)) {
        return format("the caller's llama_snapkv_params has %zu bytes, the library's %zu: they are of different versions", params.size, sizeof(llama_snapkv_params));
    }
    if (params.window_size == 0) {
        return "window_size must be at least 1 token";
    }
    if (params.observation > params.window_size) {
        return format("observation %u is more than window_size %u", params.observation, params.window_size);
    }
    if (params.kernel_size % 2 == 0) {
        return format("kernel_size must be odd, not %u", params.kernel_size);
    }
    if (!(params.self_weight >= 0.0f && std::isfinite(params.self_weight))) {
        return format("self_weight must be a number that is not negative, not %g", params.self_weight);
    }
    if (params.budget == 0 && !(params.keep_ratio > 0.0f && params.keep_ratio <= 1.0f)) {
        return format("keep_ratio must be in (0, 1], not %g", params.keep_ratio);
    }
    if (params.budget > 0 && params.budget <= params.window_size + params.n_sink) {
        return format("budget %u leaves no row to select: it must be more than window_size %u + n_sink %u", params.budget, params.window_size, params.n_sink);
    }
    if (!(params.min_coverage >= 0.0f && params.min_coverage <= 1.0f)) {
        return format("min_coverage must be in [0, 1], not %g", params.min_coverage);
    }
    if (params.min_coverage > 0.0f && (params.budget == 0 || params.max_budget < params.budget)) {
        return format("min_coverage needs a budget, and a max_budget that is not below it: not %u and %u", params.budget, params.max_budget);
    }
    if (params.decode_cells == 0) {
        return "decode_cells must be at least 1 cell";
    }
    if (!(params.select_share > 0.0f && params.select_share <= 1.0f)) {
        return format("select_share must be in (0, 1], not %g", params.select_share);
    }
    if (!(params.select_depth >= 0.0f && params.select_depth <= 1.0f)) {
        return format("select_depth must be in [0, 1], not %g", params.select_depth);
    }
    if (!(params.select_settled >= 0.0f && params.select_settled <= 1.0f)) {
        return format("select_settled must be in [0, 1], not %g", params.select_settled);
    }
    if (params.prefill == LLAMA_SNAPKV_PREFILL_SELECTIVE && params.vault) {
        return "a selective prefill leaves the vault without the rows that later layers have not computed, and the next question may need them: "
               "set prefill to exact, or leave the vault out";
    }
    if (params.recall_every > 0 && !params.vault) {
        return "a recall takes rows from the vault, and there is none: set vault, or recall_every to 0";
    }
    if (params.recall_every > 0 && (params.recall_queries == 0 || params.recall_queries > params.recall_every)) {
        return format("recall_queries must be in [1, recall_every], which is %u, not %u", params.recall_every, params.recall_queries);
    }
    if (!(params.recall_margin >= 1.0f && std::isfinite(params.recall_margin))) {
        return format("recall_margin must be a number from 1, not %g", params.recall_margin);
    }
    if (params.recall_every > 0 && params.recall_delay >= (int64_t) params.recall_every) {
        return format("recall_delay must be less than recall_every, which is %u, not %d: the next recall would come first", params.recall_every, params.recall_delay);
    }
    return "";
}

uint32_t llama_snapkv_n_rows(const llama_snapkv_params & params, uint32_t n_prompt) {
    if (n_prompt <= params.window_size) {
        return n_prompt;
    }
    if (params.budget > 0) {
        return std::min(params.budget, n_prompt);
    }
    const uint32_t n_kept = (uint32_t) std::floor((double) params.keep_ratio * (n_prompt - params.window_size));
    return std::min(std::max(n_kept, params.n_sink) + params.window_size, n_prompt);
}

uint32_t llama_snapkv_n_rows_max(const llama_snapkv_params & params, uint32_t n_prompt) {
    const uint32_t n_rows = llama_snapkv_n_rows(params, n_prompt);
    return params.min_coverage > 0.0f && n_rows < n_prompt ? std::min(params.max_budget, n_prompt) : n_rows;
}

uint32_t llama_snapkv_n_voters(const llama_snapkv_params & params) {
    return params.observation > 0 ? params.observation : std::min(16u, params.window_size);
}
