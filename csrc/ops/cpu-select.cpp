// SELECT and EVICT: a thread has heads, or rows of the target.
#include "ops/cpu.h"

#include "ops/snapkv-op.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

// larger votes have larger keys; NaN has the smallest
static uint32_t rank_key(float vote) {
    if (std::isnan(vote)) {
        return 0;
    }
    uint32_t bits;
    memcpy(&bits, &vote, sizeof(bits));
    bits = bits == 0x80000000 ? 0 : bits; // -0 equals 0
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

// the k largest of votes[begin, end), of equal ones the lower positions: found by their keys, eight bits at a time from the
// top. needs no memory, however long the prompt. returns the end of ids
static int32_t * select_best(const float * votes, int64_t begin, int64_t end, int64_t k, int32_t * ids) {
    if (k == 0) {
        return ids;
    }
    uint32_t key = 0; // of the last vote that is kept, as far as known
    uint32_t mask = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        int64_t count[256] = {};
        for (int64_t j = begin; j < end; ++j) {
            const uint32_t x = rank_key(votes[j]);
            count[(x >> shift) & 0xff] += (x & mask) == key;
        }
        uint32_t digit = 255;
        for (; count[digit] < k; --digit) {
            k -= count[digit];
        }
        key |= digit << shift;
        mask |= 0xffu << shift;
    }
    // k is now the number of those equal to the last one that are kept
    for (int64_t j = begin; j < end; ++j) {
        const uint32_t x = rank_key(votes[j]);
        if (x > key || (x == key && k-- > 0)) {
            *ids++ = (int32_t) j;
        }
    }
    return ids;
}

void snapkv_op_cpu_select(ggml_tensor * dst, int ith, int nth, void * /*userdata*/) {
    snapkv_op_params params;
    snapkv_op_get_params(dst, &params);
    const ggml_tensor * votes = dst->src[0];
    const int64_t n = votes->ne[0];
    const int64_t m = n - params.window;
    const int64_t n_kept = dst->ne[0] - 1;

    for (int64_t h = ith; h < dst->ne[1]; h += nth) {
        const float * pooled = (const float *) votes->data + h * n;
        const float * mass = pooled + votes->ne[1] * n;
        int32_t * ids = (int32_t *) dst->data + h * dst->ne[0];
        for (int32_t j = 0; j < params.n_sink; ++j) {
            ids[j] = j;
        }
        select_best(pooled, params.n_sink, m, n_kept - params.n_sink, ids + params.n_sink);

        double total = 0.0;
        for (int64_t j = 0; j < n; ++j) {
            total += mass[j];
        }
        double held = 0.0;
        for (int64_t i = 0; i < n_kept; ++i) {
            held += mass[ids[i]];
        }
        for (int64_t j = m; j < n; ++j) {
            held += mass[j];
        }
        const float coverage = total > 0.0 ? (float) std::min(1.0, held / total) : 1.0f;
        memcpy(ids + n_kept, &coverage, sizeof(coverage));
    }
}

void snapkv_op_cpu_evict(ggml_tensor * dst, int ith, int nth, void * /*userdata*/) {
    snapkv_op_params params;
    snapkv_op_get_params(dst, &params);
    const ggml_tensor * src = dst->src[1];
    const ggml_tensor * ids = dst->src[2];
    const int64_t n_kept = ids->ne[0] - 1;
    const size_t row_size = ggml_row_size(src->type, src->ne[0]);
    const int64_t n_head_kv = ids->ne[1];
    const size_t head_size = row_size / n_head_kv;

    const int64_t end = dst->ne[1] * (ith + 1) / nth;
    for (int64_t i = dst->ne[1] * ith / nth; i < end; ++i) {
        char * to = (char *) dst->data + i * dst->nb[1];
        if (i >= n_kept) {
            memcpy(to, (const char *) src->data + (params.window + i - n_kept) * src->nb[1], row_size);
            continue;
        }
        for (int64_t h = 0; h < n_head_kv; ++h) {
            const int64_t id = ((const int32_t *) ids->data)[h * ids->ne[0] + i];
            memcpy(to + h * head_size, (const char *) src->data + id * src->nb[1] + h * head_size, head_size);
        }
    }
}
