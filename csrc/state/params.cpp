// Defaults, limits, and what follows from the parameters.
#include "state/params.h"

#include "llama-impl.h"

#include <algorithm>
#include <cmath>

llama_snapkv_params llama_snapkv_default_params(void) {
    llama_snapkv_params params = {};
    params.size = sizeof(params);
    params.budget = 2048;
    params.ratio = 0.0f;
    params.window = 32;
    params.voters = 0;
    params.kernel = 21;
    params.pool = LLAMA_SNAPKV_POOL_TRIM;
    params.reduce = LLAMA_SNAPKV_REDUCE_MAX;
    params.own = 0.25f;
    params.sinks = 0;
    params.min_coverage = 0.0f;
    params.max_budget = 0;
    params.room = 1024;
    params.layer_group = 0;
    params.hidden = LLAMA_SNAPKV_HIDDEN_AUTO;
    params.chunk = 0;
    params.ops = LLAMA_SNAPKV_OPS_AUTO;
    params.keep_scores = false;
    params.vault = false;
    params.vault_limit = 0;
    return params;
}

std::string llama_snapkv_check_params(const llama_snapkv_params & params) {
    if (params.size != sizeof(llama_snapkv_params)) {
        return format("the caller's llama_snapkv_params has %zu bytes, the library's %zu: they are of different versions", params.size, sizeof(llama_snapkv_params));
    }
    if (params.window == 0) {
        return "window must be at least 1 token";
    }
    if (params.voters > params.window) {
        return format("voters %u are more than the window's %u rows", params.voters, params.window);
    }
    if (params.kernel % 2 == 0) {
        return format("kernel must be odd, not %u", params.kernel);
    }
    if (!(params.own >= 0.0f && std::isfinite(params.own))) {
        return format("own must be a number that is not negative, not %g", params.own);
    }
    if (params.budget == 0 && !(params.ratio > 0.0f && params.ratio <= 1.0f)) {
        return format("ratio must be in (0, 1], not %g", params.ratio);
    }
    if (params.budget > 0 && params.budget <= params.window + params.sinks) {
        return format("budget %u leaves no row to select: it must be more than window %u + sinks %u", params.budget, params.window, params.sinks);
    }
    if (!(params.min_coverage >= 0.0f && params.min_coverage <= 1.0f)) {
        return format("min_coverage must be in [0, 1], not %g", params.min_coverage);
    }
    if (params.min_coverage > 0.0f && (params.budget == 0 || params.max_budget < params.budget)) {
        return format("min_coverage needs a budget, and a max_budget that is not below it: not %u and %u", params.budget, params.max_budget);
    }
    if (params.room == 0) {
        return "room must be at least 1 cell";
    }
    return "";
}

uint32_t llama_snapkv_n_rows(const llama_snapkv_params & params, uint32_t n_prompt) {
    if (n_prompt <= params.window) {
        return n_prompt;
    }
    if (params.budget > 0) {
        return std::min(params.budget, n_prompt);
    }
    const uint32_t n_kept = (uint32_t) std::floor((double) params.ratio * (n_prompt - params.window));
    return std::min(std::max(n_kept, params.sinks) + params.window, n_prompt);
}

uint32_t llama_snapkv_n_rows_max(const llama_snapkv_params & params, uint32_t n_prompt) {
    const uint32_t n_rows = llama_snapkv_n_rows(params, n_prompt);
    return params.min_coverage > 0.0f && n_rows < n_prompt ? std::min(params.max_budget, n_prompt) : n_rows;
}

uint32_t llama_snapkv_n_voters(const llama_snapkv_params & params) {
    return params.voters > 0 ? params.voters : std::min(16u, params.window);
}
