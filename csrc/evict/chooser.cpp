#include "evict/chooser.h"

#include "evict/rank.h"

#include "llama-impl.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

llama_snapkv_chooser::ranking llama_snapkv_chooser::rank(const llama_snapkv_layer & layer, int64_t head, const std::vector<float> & pooled, const std::vector<float> & mass) const {
    const auto * spans = task.prompt.protected_spans;
    std::vector<bool> stays(task.n_prefix());
    uint32_t n_stay = 0;
    for (uint32_t row = 0; row < stays.size(); ++row) {
        const llama_pos pos = positions.of(layer.ic, head, row);
        stays[row] = row < params.n_sink || std::any_of(spans, spans + task.prompt.n_protected, [&](const auto & span) { return span.begin <= pos && pos < span.end; });
        n_stay += stays[row];
    }
    if (n_stay > task.n_prefix_kept()) {
        throw std::invalid_argument(format("%u protected positions and the window's %u are more than the budget of %u: raise the budget or protect less", n_stay, task.window, task.n_kept));
    }

    ranking res;
    res.order = llama_snapkv_rank(pooled, task.n_prefix_kept_max(), stays);
    const double total = std::accumulate(mass.begin(), mass.end(), 0.0);
    double held = std::accumulate(mass.begin() + task.n_prefix(), mass.end(), 0.0);
    for (uint32_t i = 0; i <= task.n_prefix_kept_max(); ++i) {
        held += i > 0 ? mass[res.order[i - 1]] : 0.0f;
        res.held.push_back(total > 0.0 ? (float) std::min(1.0, held / total) : 1.0f);
    }
    return res;
}

llama_snapkv_chooser::choice llama_snapkv_chooser::choose(const llama_snapkv_layer & layer, const llama_snapkv_ballot & ballot, uint32_t n_seen) {
    const uint32_t n_kept = task.n_prefix_kept_max();
    choice res;
    std::vector<float> pooled(task.n_prefix());
    std::vector<float> mass(n_seen);
    if (ranks()) {
        rankings.emplace_back();
    }
    for (int64_t h = 0; h < layer.n_head_kv; ++h) {
        if (!ballot.fused || reads_votes()) {
            ballot.read_votes(h, pooled, mass);
        }
        if (params.keep_scores) {
            res.scores.push_back(selection.spread(pooled));
        }

        std::vector<int32_t> rows;
        float coverage = 0.0f;
        if (ranks()) {
            rankings.back().push_back(rank(layer, h, pooled, mass));
            rows = best(layer.ic, (uint32_t) h, n_kept);
            coverage = rankings.back().back().held.back();
        } else if (ballot.fused) {
            rows = ballot.read_chosen(h, n_kept, coverage);
        } else {
            rows = llama_snapkv_select(pooled, n_kept, params.n_sink);
            coverage = (float) llama_snapkv_coverage_of(mass, rows, n_seen - task.n_prefix());
        }
        res.coverage.push_back(coverage);
        res.rows.insert(res.rows.end(), rows.begin(), rows.end());
    }
    return res;
}

std::vector<int32_t> llama_snapkv_chooser::best(uint32_t ic, uint32_t head, uint32_t n_rows) const {
    const auto & order = rankings[ic][head].order;
    std::vector<int32_t> rows(order.begin(), order.begin() + n_rows);
    std::sort(rows.begin(), rows.end());
    return rows;
}

uint32_t llama_snapkv_chooser::rows_for_coverage() const {
    auto coverage_of = [&](uint32_t n_rows) {
        double sum = 0.0;
        for (const auto & layer : rankings) {
            double of_layer = 0.0;
            for (const auto & head : layer) {
                of_layer += head.held[n_rows];
            }
            sum += of_layer / layer.size();
        }
        return sum / rankings.size();
    };
    uint32_t low = task.n_prefix_kept();
    uint32_t high = task.n_prefix_kept_max();
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (coverage_of(middle) >= params.min_coverage) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}
