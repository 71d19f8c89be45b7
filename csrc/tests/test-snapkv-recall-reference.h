// What a recall's votes should be, in double: of a prompt of N rows, pooled 3 wide without the first key, and a quarter of a row's own.
#pragma once

#include "test-snapkv-recall-context.h"

#include "vault/index.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>
#include <vector>

using queries_t = std::vector<std::vector<const float *>>;
using logit_t = std::function<double(const float * query, uint32_t j)>;

// attention of each query to n things, of which one counts as so many; the most that any query of a head gives, mean over the heads
static std::vector<double> joined(const queries_t & q, uint32_t n, const logit_t & logit, const std::function<double(uint32_t)> & counts) {
    std::vector<double> mean(n);
    for (const auto & of_head : q) {
        std::vector<double> most(n);
        for (const float * query : of_head) {
            std::vector<double> p(n);
            double sum = 0.0;
            for (uint32_t j = 0; j < n; ++j) {
                p[j] = std::exp(logit(query, j));
                sum += counts(j) * p[j];
            }
            for (uint32_t j = 0; j < n; ++j) {
                most[j] = std::max(most[j], p[j] / sum);
            }
        }
        for (uint32_t j = 0; j < n; ++j) {
            mean[j] += most[j] / q.size();
        }
    }
    return mean;
}

// the rows that the index has queries compared with one by one: of each stretch [begin, end), a half of its mean key and a half of the
// bound that Quest takes
static std::vector<bool> asked_rows(const float * k, int64_t head_dim, const queries_t & q, const std::function<double(double)> & scaled, uint32_t n_asked,
        std::vector<std::vector<double>> & means, std::vector<std::vector<double>> & spreads) {
    static constexpr uint32_t S = llama_snapkv_index::STRETCH;
    const uint32_t n_stretches = (N + S - 1) / S;
    means.assign(n_stretches, std::vector<double>(head_dim));
    spreads = means;
    for (uint32_t s = 0; s < n_stretches; ++s) {
        const uint32_t end = std::min(N, (s + 1) * S);
        for (int64_t d = 0; d < head_dim; ++d) {
            double sum = 0.0;
            double min = INFINITY;
            double max = -INFINITY;
            for (uint32_t j = s * S; j < end; ++j) {
                sum += k[j * head_dim + d] / (double) (end - s * S);
                min = std::min(min, (double) k[j * head_dim + d]);
                max = std::max(max, (double) k[j * head_dim + d]);
            }
            means[s][d] = sum;
            spreads[s][d] = (max - min) / 4;
        }
    }
    const auto logit = [&](const float * query, uint32_t s) {
        double dot = 0.0;
        for (int64_t d = 0; d < head_dim; ++d) {
            dot += query[d] * means[s][d] + std::fabs(query[d]) * spreads[s][d];
        }
        return scaled(dot);
    };
    const auto of_stretches = joined(q, n_stretches, logit, [](uint32_t) { return 1.0; });
    std::vector<uint32_t> order(n_stretches);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return of_stretches[a] > of_stretches[b]; });
    std::vector<bool> res(N);
    for (uint32_t i = 0; i < (n_asked + S - 1) / S; ++i) {
        std::fill(res.begin() + order[i] * S, res.begin() + std::min(N, (order[i] + 1) * S), true);
    }
    return res;
}

// of a KV head: k [head_dim, n], one query after the other, [n_queries] for each of n_head query heads. asked: where there is an index, the
// rows that may come in
static std::vector<double> votes(const float * k, int64_t head_dim, const queries_t & q, double scale, double softcap, uint32_t n_asked = N, std::vector<bool> * asked = nullptr) {
    const auto scaled = [&](double dot) { return softcap == 0.0 ? dot * scale : softcap * std::tanh(dot * scale / softcap); };
    std::vector<bool> by_row(N, true);
    std::vector<std::vector<double>> means;
    std::vector<std::vector<double>> spreads;
    if (n_asked < N) {
        by_row = asked_rows(k, head_dim, q, scaled, n_asked, means, spreads);
    }
    const auto logit = [&](const float * query, uint32_t j) {
        const uint32_t s = j / llama_snapkv_index::STRETCH;
        double dot = 0.0;
        for (int64_t d = 0; d < head_dim; ++d) {
            dot += by_row[j] ? (double) query[d] * k[j * head_dim + d] : query[d] * means[s][d];
        }
        return scaled(dot);
    };
    const auto mean = joined(q, N, logit, [](uint32_t) { return 1.0; });
    if (asked) {
        asked->assign(N, false);
        for (int j = 0; j < (int) N; ++j) {
            (*asked)[j] = by_row[j] || (j > 0 && by_row[j - 1]) || (j + 1 < (int) N && by_row[j + 1]);
        }
    }
    std::vector<double> res(N);
    for (int j = 0; j < (int) N; ++j) {
        for (int i = std::max(1, j - 1); i <= std::min((int) N - 1, j + 1); ++i) { // 3 wide, without the first key
            res[j] += mean[i] / 3.0;
        }
        res[j] += 0.25 * mean[j];
    }
    return res;
}
