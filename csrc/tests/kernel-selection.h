// Selection and eviction, of a device that has its kernels as C++.
#pragma once

#include "kernel-cases.h"

struct selection : tensors {
    ggml_tensor * votes;
    ggml_tensor * ids;
    int n, w, n_head_kv, n_kept, n_sink;

    selection(int n, int w, int n_head_kv, int n_kept, int n_sink) : n(n), w(w), n_head_kv(n_head_kv), n_kept(n_kept), n_sink(std::min(n_sink, n_kept)) {
        votes = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, n, n_head_kv, 2);
        ids = snapkv_op_select(ctx.get(), votes, w, n_kept, n_sink);
        alloc();
        for (int64_t i = 0; i < ggml_nelements(votes); ++i) {
            ((float *) votes->data)[i] = std::fabs(gauss());
        }
    }

    float * pooled(int h) { return (float *) votes->data + (size_t) h * n; }
    float * mass(int h) { return (float *) votes->data + (size_t) (n_head_kv + h) * n; }

    // by a stable sort: equal votes stay in the order of positions
    std::vector<int32_t> expected(int h, bool low_first = true) {
        const float * v = pooled(h);
        std::vector<int32_t> res(n - w);
        std::iota(res.begin(), res.end(), 0);
        if (!low_first) {
            std::reverse(res.begin(), res.end());
        }
        std::stable_sort(res.begin(), res.end(), [&](int32_t a, int32_t b) {
            if ((a < n_sink) != (b < n_sink)) {
                return a < n_sink;
            }
            return !std::isnan(v[a]) && (std::isnan(v[b]) || v[a] > v[b]);
        });
        res.resize(n_kept);
        std::sort(res.begin(), res.end());
        return res;
    }

    bool ids_are(int h, const std::vector<int32_t> & want) { return std::equal(want.begin(), want.end(), (int32_t *) ids->data + (size_t) h * (n_kept + 1)); }

    void check() {
        run(ids);
        for (int h = 0; h < n_head_kv; ++h) {
            const std::vector<int32_t> want = expected(h);
            double held = 0.0;
            double all = 0.0;
            for (int j = 0; j < n; ++j) {
                all += mass(h)[j];
                held += j >= n - w ? mass(h)[j] : 0.0;
            }
            for (const int32_t id : want) {
                held += mass(h)[id];
            }
            float coverage;
            memcpy(&coverage, (int32_t *) ids->data + (size_t) h * (n_kept + 1) + n_kept, sizeof(coverage));
            const bool same = ids_are(h, want);
            const bool covers = coverage >= 0.0f && coverage <= 1.0f && std::fabs(coverage - (all > 0.0 ? held / all : 1.0)) < 1e-5;
            if (!same || !covers) {
                printf("selection n=%d w=%d kept=%d sinks=%d head %d %s: %s, coverage %g\n", n, w, n_kept, n_sink, h, device_setting().c_str(),
                        same ? "ids right" : "ids wrong", coverage);
                n_failed++;
            }
        }
    }
};

static void test_select(int n_cases) {
    const float special[] = { 0.0f, -0.0f, 1.0f, -1.0f, NAN, -NAN, INFINITY, 1e-42f, -1e-42f, 3e38f };

    for (int c = 0; c < n_cases; ++c) {
        const int sizes[] = { 1, 2, 31, 33, 64, 255, 1023, 1025, 3000 };
        const int n = sizes[pick(0, 8)];
        const int w = c % 5 == 0 ? n : pick(1, std::min(n, 256));
        const int n_kept = c % 3 == 0 ? n - w : pick(0, n - w);
        selection s(n, w, pick(1, 3), n_kept, c % 8 >= 4 ? pick(0, n) : 0);
        for (int h = 0; h < s.n_head_kv; ++h) {
            for (int j = 0; j < n; ++j) {
                switch (c % 4) {
                    case 0: s.pooled(h)[j] = (float) pick(0, 3); break; // ties
                    case 1: s.pooled(h)[j] = special[pick(0, 9)]; break;
                    case 2: s.pooled(h)[j] = std::exp(6.0f * gauss()); break;
                    default: break;
                }
                if (c % 7 == 0) {
                    s.mass(h)[j] = 0.0f;
                }
            }
        }
        s.check();
    }

    // zeros of either sign are one value
    selection zeros(100, 10, 1, 30, 0);
    for (int j = 0; j < 100; ++j) {
        zeros.pooled(0)[j] = j % 3 ? 0.0f : -0.0f;
    }
    zeros.check();

    // the comparison sees which of two equal votes is kept, and an id that is one off
    selection s(100, 10, 1, 30, 0);
    for (int j = 0; j < 100; ++j) {
        s.pooled(0)[j] = (float) (j % 2);
    }
    s.check();
    CHECK(!s.ids_are(0, s.expected(0, false)));
    std::vector<int32_t> off = s.expected(0);
    off.back()++;
    CHECK(!s.ids_are(0, off));
}

//
// eviction
//

static void test_evict(ggml_type type, int head_dim, int n_head_kv, int n_cells, int n_kept, int n_window, int row0) {
    const int dst0 = pick(0, 3); // first row that is written
    tensors t;
    ggml_tensor * src = ggml_new_tensor_2d(t.ctx.get(), type, head_dim * n_head_kv, n_cells);
    ggml_tensor * cache = ggml_new_tensor_2d(t.ctx.get(), type, head_dim * n_head_kv, dst0 + n_kept + n_window + 2);
    ggml_tensor * dst = ggml_view_2d(t.ctx.get(), cache, cache->ne[0], n_kept + n_window, cache->nb[1], dst0 * cache->nb[1]);
    ggml_tensor * ids = ggml_new_tensor_2d(t.ctx.get(), GGML_TYPE_I32, n_kept + 1, n_head_kv);
    ggml_tensor * node = snapkv_op_evict(t.ctx.get(), dst, src, ids, n_head_kv, row0);
    t.alloc();

    for (size_t i = 0; i < ggml_nbytes(src); ++i) {
        ((uint8_t *) src->data)[i] = (uint8_t) rng();
    }
    for (int64_t i = 0; i < ggml_nelements(ids); ++i) {
        ((int32_t *) ids->data)[i] = pick(0, n_cells - 1);
    }
    t.run(node);

    const size_t bytes = ggml_row_size(type, head_dim);
    bool same = true;
    bool control = true; // the wrong head's ids
    for (int h = 0; h < n_head_kv; ++h) {
        for (int i = 0; i < n_kept + n_window; ++i) {
            auto from = [&](int head) { return i < n_kept ? ((int32_t *) ids->data)[head * (n_kept + 1) + i] : row0 + i - n_kept; };
            const char * got = (char *) dst->data + i * dst->nb[1] + h * bytes;
            same = same && memcmp(got, (char *) src->data + from(h) * src->nb[1] + h * bytes, bytes) == 0;
            control = control && memcmp(got, (char *) src->data + from((h + 1) % n_head_kv) * src->nb[1] + h * bytes, bytes) == 0;
        }
    }
    CHECK(same);
    CHECK(n_kept < 8 || n_head_kv == 1 || !control);
}

static void test_evictions() {
    for (const ggml_type type : KV_TYPES) {
        test_evict(type, 64, 3, 50, 17, 8, 42);
        test_evict(type, 128, 2, 300, 100, 32, 268);
        test_evict(type, 256, 1, 40, 0, 40, 0);
        test_evict(type, 512, 2, 60, 20, 8, 52);
        test_evict(type, 96, 4, 9, 9, 0, 9);
    }
    test_evict(GGML_TYPE_F16, 80, 5, 30, 12, 3, 20);  // units of 16 bytes
    test_evict(GGML_TYPE_Q8_0, 32, 3, 30, 12, 3, 20); // of 2
}
