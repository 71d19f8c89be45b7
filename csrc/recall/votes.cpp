#include "recall/votes.h"

#include <algorithm>
#include <cmath>
#include <numeric>

static constexpr uint32_t STRETCH = llama_snapkv_index::STRETCH;

// which stretches are to be asked row by row
void llama_snapkv_votes_of_head::ask_index(const llama_snapkv_vault & vault, uint32_t ic, int64_t head, const llama_snapkv_lanes & lanes, uint32_t n_asked) {
    const int64_t n_lanes = lanes.count();
    const uint32_t n_all = llama_snapkv_index::n_stretches(n);
    const int64_t n_padded = GGML_PAD(n_all, llama_snapkv_lanes::WIDTH);
    of_mean.resize(n_padded * n_lanes);
    rest.resize(n_padded * n_lanes);
    lanes.logits_of_stretches(vault.index.mean(ic, (uint32_t) head, 0), n_all, of_mean.data(), rest.data());

    std::vector<float> max(n_lanes, -INFINITY);
    std::vector<double> sum(n_lanes);
    lanes.max(rest.data(), n_all, max.data());
    lanes.exp(rest.data(), n_all, max.data(), 1.0, sum.data());
    of_stretch.resize(n_all);
    lanes.votes(rest.data(), n_all, sum.data(), params.aggregation, of_stretch.data());

    order.resize(n_all);
    std::iota(order.begin(), order.end(), 0);
    const uint32_t k = std::min(n_all, (n_asked + STRETCH - 1) / STRETCH);
    std::nth_element(order.begin(), order.begin() + k - 1, order.end(), [this](uint32_t a, uint32_t b) {
        return of_stretch[a] > of_stretch[b] || (of_stretch[a] == of_stretch[b] && a < b);
    });
    asked.assign(n_all, 0);
    for (uint32_t i = 0; i < k; ++i) {
        asked[order[i]] = 1;
    }
}

void llama_snapkv_votes_of_head::count(const llama_snapkv_vault & vault, uint32_t ic, int64_t head, const llama_snapkv_lanes & lanes, uint32_t n_asked, const llama_snapkv_params & given) {
    const auto & layer = vault.layers[ic];
    const int64_t n_lanes = lanes.count();
    params = given;
    n = vault.n_tokens();
    const uint32_t n_all = llama_snapkv_index::n_stretches(n);
    asked.assign(n_all, 1);
    if (n_asked < n) {
        ask_index(vault, ic, head, lanes, n_asked);
    }

    runs.clear();
    uint32_t n_rows = 0;
    for (uint32_t s = 0; s < n_all; ++s) {
        if (asked[s]) {
            const uint32_t end = std::min(n, (s + 1) * STRETCH);
            n_rows += end - s * STRETCH;
            if (!runs.empty() && runs.back().second == s * STRETCH) {
                runs.back().second = end;
            } else {
                runs.push_back({ s * STRETCH, end });
            }
        }
    }
    of_rows.resize((n_rows + llama_snapkv_lanes::WIDTH) * n_lanes);
    std::vector<float> max(n_lanes, -INFINITY);
    std::vector<double> sum(n_lanes);
    float * to = of_rows.data();
    for (const auto & [begin, end] : runs) {
        vault.each(/*is_v =*/false, ic, begin, end, [&](const uint8_t * data, uint32_t, uint32_t n_here) {
            lanes.logits(layer.type_k, data + head * (layer.row_k / layer.n_head_kv), layer.row_k, n_here, to);
            to += n_here * n_lanes;
        });
    }
    lanes.max(of_rows.data(), n_rows, max.data());

    // a stretch that is not asked counts as so many rows like its mean key. not like its best: what is not asked would seem to be worth more
    // than what is
    uint32_t n_rest = 0;
    for (uint32_t s = 0; s < n_all; ++s) {
        if (!asked[s]) {
            std::copy_n(of_mean.data() + s * n_lanes, n_lanes, rest.data() + n_rest++ * n_lanes);
        }
    }
    lanes.max(rest.data(), n_rest, max.data());
    const uint32_t n_short = n_rest > 0 && !asked[n_all - 1] ? 1 : 0;
    lanes.exp(rest.data(), n_rest - n_short, max.data(), STRETCH, sum.data());
    lanes.exp(rest.data() + (n_rest - n_short) * n_lanes, n_short, max.data(), n - (n_all - 1) * STRETCH, sum.data());
    lanes.exp(of_rows.data(), n_rows, max.data(), 1.0, sum.data());

    own.resize(n);
    of_stretch.resize(n_all);
    lanes.votes(rest.data(), n_rest, sum.data(), params.aggregation, of_stretch.data());
    for (uint32_t s = 0, i = 0; n_rest > 0 && s < n_all; ++s) {
        if (!asked[s]) {
            std::fill(own.begin() + s * STRETCH, own.begin() + std::min(n, (s + 1) * STRETCH), of_stretch[i++]);
        }
    }
    const float * from = of_rows.data();
    for (const auto & [begin, end] : runs) {
        lanes.votes(from, end - begin, sum.data(), params.aggregation, own.data() + begin);
        from += (end - begin) * n_lanes;
    }

    // with their neighbours
    const uint32_t half = params.kernel_size / 2;
    std::vector<std::pair<uint32_t, uint32_t>> wider;
    for (const auto & [begin, end] : runs) {
        const uint32_t a = begin > half ? begin - half : 0;
        const uint32_t b = std::min(n, end + half);
        if (!wider.empty() && wider.back().second >= a) {
            wider.back().second = b;
        } else {
            wider.push_back({ a, b });
        }
    }
    runs = std::move(wider);
    pooled.resize(n);
    for (const auto & [begin, end] : runs) {
        pool(begin, end, pooled.data() + begin);
    }
}

float llama_snapkv_votes_of_head::of_any(uint32_t pos) const {
    float res;
    pool(pos, pos + 1, &res);
    return res;
}

// as evict/stock.cpp does it for a prefill
void llama_snapkv_votes_of_head::pool(uint32_t from, uint32_t to, float * out) const {
    const int64_t half = params.kernel_size / 2;
    const bool is_max = params.pooling == LLAMA_SNAPKV_POOLING_MAX;
    const int64_t first = params.pooling == LLAMA_SNAPKV_POOLING_NOSINK && half > 0 ? 1 : 0;
    const int64_t n_rows = n;
    double sum = 0.0; // of [i - half, i + half]
    for (int64_t i = std::max(first, from - half); i < std::min(from + half, n_rows); ++i) {
        sum += own[i];
    }
    for (int64_t i = from; i < to; ++i) {
        const int64_t begin = std::max(first, i - half);
        const int64_t end = std::min(n_rows, i + half + 1);
        float res;
        if (is_max) {
            res = *std::max_element(own.begin() + begin, own.begin() + end);
        } else {
            sum += i + half < n_rows && i + half >= first ? own[i + half] : 0.0f;
            sum -= i > from && i - half - 1 >= first ? own[i - half - 1] : 0.0f;
            res = (float) (sum / params.kernel_size);
        }
        out[i - from] = res + params.self_weight * own[i];
    }
}

size_t llama_snapkv_votes_of_head::bytes() const {
    return (of_mean.capacity() + rest.capacity() + of_stretch.capacity() + of_rows.capacity() + own.capacity() + pooled.capacity()) * sizeof(float) + order.capacity() * sizeof(uint32_t) + asked.capacity();
}
