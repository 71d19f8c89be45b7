#include "evict/rank.h"

#include <algorithm>
#include <cmath>
#include <numeric>

std::vector<int32_t> llama_snapkv_select(const std::vector<float> & scores, uint32_t k, uint32_t n_sink) {
    const uint32_t n = (uint32_t) scores.size();
    k = std::min(k, n);
    n_sink = std::min(n_sink, k);

    std::vector<int32_t> ids(n);
    std::iota(ids.begin(), ids.end(), 0);

    auto value = [&scores](int32_t i) { return std::isnan(scores[i]) ? -INFINITY : scores[i]; };
    auto ahead = [&value](int32_t a, int32_t b) {
        const float va = value(a);
        const float vb = value(b);
        return va > vb || (va == vb && a < b);
    };
    if (n_sink < k && k < n) {
        std::nth_element(ids.begin() + n_sink, ids.begin() + k - 1, ids.end(), ahead);
    }
    ids.resize(k);
    std::sort(ids.begin(), ids.end());
    return ids;
}

std::vector<int32_t> llama_snapkv_rank(const std::vector<float> & scores, uint32_t k, const std::vector<bool> & stays) {
    std::vector<int32_t> ids(scores.size());
    std::iota(ids.begin(), ids.end(), 0);
    auto value = [&](int32_t i) { return stays[i] ? INFINITY : std::isnan(scores[i]) ? -INFINITY
                                                                                     : scores[i]; };
    k = std::min<uint32_t>(k, (uint32_t) ids.size());
    std::partial_sort(ids.begin(), ids.begin() + k, ids.end(), [&](int32_t a, int32_t b) {
        const float va = value(a);
        const float vb = value(b);
        return va > vb || (va == vb && a < b);
    });
    ids.resize(k);
    return ids;
}

std::string llama_snapkv_check_ids(const int32_t * ids, uint32_t n_kept, uint32_t n_head_kv, uint32_t n_prefix) {
    for (uint32_t h = 0; h < n_head_kv; ++h) {
        int64_t last = -1;
        for (uint32_t i = 0; i < n_kept; ++i) {
            const int64_t id = ids[(size_t) h * n_kept + i];
            if (id <= last || id >= n_prefix) {
                return "of KV head " + std::to_string(h) + " have " + std::to_string(id) + " at index " + std::to_string(i) +
                        ": they must ascend, and be below " + std::to_string(n_prefix);
            }
            last = id;
        }
    }
    return "";
}

double llama_snapkv_coverage_of(const std::vector<float> & mass, const std::vector<int32_t> & kept, uint32_t w) {
    double total = 0.0;
    for (const float m : mass) {
        total += m;
    }
    double held = 0.0;
    for (const int32_t i : kept) {
        held += mass[i];
    }
    for (size_t i = mass.size() - std::min<size_t>(w, mass.size()); i < mass.size(); ++i) {
        held += mass[i];
    }
    return total > 0.0 ? std::min(1.0, held / total) : 1.0;
}
