#include "evict/selection.h"

#include <algorithm>
#include <cmath>
#include <numeric>

// the first rows draw attention whatever they say: they go on, and do not count
static constexpr uint32_t N_FIRST = 4;

llama_snapkv_selection::llama_snapkv_selection(const llama_snapkv_params & params, const llama_snapkv_task & task, uint32_t n_tail, uint32_t n_layers_all) :
    params(params), task(task), n_layers_all(n_layers_all), n_all(task.n_rows()), open(params.prefill == LLAMA_SNAPKV_PREFILL_SELECTIVE && task.n_cells == 0) {
    if (!open) {
        return;
    }
    const uint32_t n_share = (uint32_t) std::ceil((double) params.select_share * n_all);
    n_wanted = std::min(n_all, std::max({ n_share, params.select_min, task.n_kept_max }));
    if (n_wanted == n_all && n_share < n_all) {
        open = false; // a look would cost something, and all rows would go on
        return;
    }
    stays.assign((n_all + RUN - 1) / RUN, false);
    for (uint32_t row = 0; row < std::max(N_FIRST, params.n_sink) && row < n_all; ++row) {
        stays[row / RUN] = true;
    }
    for (uint32_t row = n_all - std::min(n_all, n_tail); row < n_all; ++row) {
        stays[row / RUN] = true;
    }
    for (uint32_t i = 0; i < task.prompt.n_protected; ++i) {
        const auto & span = task.prompt.protected_spans[i];
        for (llama_pos pos = span.begin; pos < std::min<llama_pos>(span.end, n_all); ++pos) {
            stays[pos / RUN] = true;
        }
    }
    newest.assign(stays.size(), 0.0);
    to_come.assign(stays.size(), 0.0);
}

bool llama_snapkv_selection::wants_look(uint32_t n_layers, uint32_t n_next) const {
    if (!open || n_layers >= n_layers_all || n_looks == N_LOOKS) {
        return false;
    }
    const float depth = params.select_depth * n_layers_all;
    if (n_looks > 0) {
        return n_layers >= depth && (n_looks == 1 || n_layers >= n_layers_looked + step());
    }
    // once before it counts, to compare with
    return params.select_settled > 0.0f ? n_next >= depth : n_layers >= depth;
}

void llama_snapkv_selection::add(uint32_t ic, const std::vector<float> & votes_of_head) {
    if (ic != ic_newest) {
        close_layer();
        ic_newest = ic;
    }
    for (size_t row = N_FIRST; row < votes_of_head.size(); ++row) {
        newest[row / RUN] += std::isfinite(votes_of_head[row]) ? votes_of_head[row] : 0.0;
    }
}

// each layer has one vote to give
void llama_snapkv_selection::close_layer() {
    const double total = std::accumulate(newest.begin(), newest.end(), 0.0);
    for (size_t i = 0; i < to_come.size(); ++i) {
        to_come[i] = std::max(to_come[i], total > 0.0 ? newest[i] / total : 0.0);
        newest[i] = 0.0;
    }
}

// runs: those that stay, then by their votes; equal ones: the earlier
std::vector<int32_t> llama_snapkv_selection::best() const {
    std::vector<int32_t> order(stays.size());
    std::iota(order.begin(), order.end(), 0);
    const size_t n_stay = std::count(stays.begin(), stays.end(), true);
    const size_t n_missing = stays.size() * RUN - n_all; // of the last run, which stays
    const size_t n = std::min(order.size(), std::max(n_stay, (n_wanted + n_missing + RUN - 1) / RUN));
    std::partial_sort(order.begin(), order.begin() + n, order.end(), [&](int32_t a, int32_t b) {
        return stays[a] != stays[b] ? stays[a] : to_come[a] != to_come[b] ? to_come[a] > to_come[b]
                                                                          : a < b;
    });
    order.resize(n);
    return order;
}

bool llama_snapkv_selection::choose(uint32_t n_layers) {
    close_layer();
    auto runs = best();
    if (n_looks > 0) {
        auto share = [&](const std::vector<int32_t> & of) {
            double here = 0.0;
            for (const int32_t run : of) {
                here += stays[run] ? 0.0 : to_come[run];
            }
            return here;
        };
        double everywhere = 0.0;
        for (size_t i = 0; i < to_come.size(); ++i) {
            everywhere += stays[i] ? 0.0 : to_come[i];
        }
        settled = everywhere > 0.0 ? share(before) / everywhere : 1.0;
    }
    std::fill(to_come.begin(), to_come.end(), 0.0);
    n_looks++;
    n_layers_looked = n_layers;
    before = runs;
    if (n_layers < params.select_depth * n_layers_all || settled < params.select_settled) {
        open = n_looks < N_LOOKS;
        return false;
    }
    std::sort(runs.begin(), runs.end());
    for (const int32_t run : runs) {
        for (uint32_t row = run * RUN; row < std::min(n_all, (run + 1) * RUN); ++row) {
            chosen.push_back((int32_t) row);
        }
    }
    open = false;
    return true;
}

std::vector<float> llama_snapkv_selection::spread(const std::vector<float> & values) const {
    if (chosen.empty()) {
        return values;
    }
    std::vector<float> res(n_all - task.window, 0.0f);
    for (size_t i = 0; i < values.size(); ++i) {
        res[chosen[i]] = values[i];
    }
    return res;
}
