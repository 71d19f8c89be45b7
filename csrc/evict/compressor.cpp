#include "evict/compressor.h"

#include "evict/tap.h"

#include <algorithm>
#include <numeric>

llama_snapkv_compressor::llama_snapkv_compressor(llama_context & ctx, llama_snapkv & sk, llama_snapkv_runner & runner, const llama_snapkv_place & place,
        const llama_snapkv_staging & staging, const llama_snapkv_task & task, const llama_snapkv_positions & positions, llama_snapkv_selection & selection) :
    sk(sk), staging(staging), task(task), scorer(ctx, sk.params, runner, place, staging, task), chooser(sk.params, task, positions, selection), packer(ctx, runner, place, staging, task), selection(selection) {
}

double llama_snapkv_compressor::get_coverage() const {
    double sum = 0.0;
    for (const auto & layer : sk.coverage) {
        sum += std::accumulate(layer.begin(), layer.end(), 0.0) / layer.size();
    }
    return sum / sk.coverage.size();
}

void llama_snapkv_compressor::score(const std::vector<llama_snapkv_layer> & layers, llama_snapkv_record & record) {
    const int64_t t0 = ggml_time_us();
    const bool taps = task.prompt.tap;
    const auto ballots = scorer.score(layers, chooser.reads_votes(), taps);
    std::vector<llama_snapkv_chooser::choice> choices;
    for (size_t i = 0; i < layers.size(); ++i) {
        n_scored++;
        n_fused += ballots.of_layers[i].fused;
        choices.push_back(chooser.choose(layers[i], ballots.of_layers[i], scorer.n_seen()));
    }
    sk.stats.seconds_score += (ggml_time_us() - t0) * 1e-6;
    sk.stats.n_voters = scorer.voters.n;
    sk.stats.n_after_voters = scorer.voters.n_after;

    for (size_t i = 0; i < layers.size(); ++i) {
        if (taps) {
            llama_snapkv_call_tap(task, staging, layers[i], ballots.of_layers[i], choices[i]);
        }
        record.layers.push_back({ layers[i].il, (uint32_t) layers[i].n_head_kv, task.n_prefix_kept_max(), std::move(choices[i].rows) });
        sk.coverage[layers[i].ic] = std::move(choices[i].coverage);
        if (sk.params.keep_scores) {
            sk.scores[layers[i].ic] = std::move(choices[i].scores);
        }
    }
}

void llama_snapkv_compressor::look(const std::vector<llama_snapkv_layer> & layers) {
    const auto ballots = scorer.score(layers, /*with_votes =*/true, /*with_kv =*/false);
    std::vector<float> pooled(task.n_prefix());
    std::vector<float> mass(scorer.n_seen());
    for (size_t i = 0; i < layers.size(); ++i) {
        for (int64_t h = 0; h < layers[i].n_head_kv; ++h) {
            ballots.of_layers[i].read_votes(h, pooled, mass);
            selection.add(layers[i].ic, pooled);
        }
    }
}

void llama_snapkv_compressor::evict(const std::vector<llama_snapkv_layer> & layers, const llama_snapkv_record & record, llama_kv_cache & base, const llama_kv_cache::slot_info & target) {
    const int64_t t0 = ggml_time_us();
    std::vector<llama_snapkv_packer::chosen> kept;
    for (size_t i = 0; i < layers.size(); ++i) {
        kept.push_back({ layers[i], scorer.is_fused(layers[i]), &record.layers[record.layers.size() - layers.size() + i].ids });
    }
    packer.pack(kept, base, target);
    sk.stats.seconds_evict += (ggml_time_us() - t0) * 1e-6;
}

uint32_t llama_snapkv_compressor::shrink(llama_snapkv_record & record, llama_kv_cache & base, const llama_kv_cache::slot_info & target) {
    const uint32_t n_kept = task.n_prefix_kept_max();
    const uint32_t n_rows = task.n_kept < task.n_kept_max ? chooser.rows_for_coverage() : n_kept;
    if (n_rows == n_kept) {
        return n_kept;
    }
    const int64_t t0 = ggml_time_us();
    for (uint32_t ic = 0; ic < record.layers.size(); ++ic) {
        auto & layer = record.layers[ic];
        std::vector<int32_t> ids;
        std::vector<uint32_t> packed; // where these are among those that are packed
        for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
            const auto first = layer.ids.begin() + (size_t) h * n_kept;
            for (const int32_t id : chooser.best(ic, h, n_rows)) {
                ids.push_back(id);
                packed.push_back((uint32_t) (std::lower_bound(first, first + n_kept, id) - first));
            }
            sk.coverage[ic][h] = chooser.coverage(ic, h, n_rows);
        }
        packer.repack(layer.il, layer.n_head_kv, packed, n_rows, base, target);
        layer.ids = std::move(ids);
        layer.n_kept = n_rows;
    }
    sk.stats.seconds_evict += (ggml_time_us() - t0) * 1e-6;
    return n_rows;
}
