// Recall while answering: the rows that an answer's tokens ask for are in the cache, with the vault's bytes, and no other cell has
// changed. What should be there is counted here from the queries that a callback of the context's own has seen, in double.
//
//   test-snapkv-recall [--imaginary] MODEL.gguf ...

#include "imaginary-device.h"
#include "test-snapkv-recall-context.h"
#include "test-snapkv-recall-reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>

static constexpr double FADE = 0.9;

// what the context's own callback has seen: queries, [head_dim, n_head] of each layer that attends
struct seen {
    struct layer {
        int64_t head_dim;
        int64_t n_head;
        float scale;
        float softcap;
        std::vector<float> q;
    };
    std::vector<layer> now; // of the newest token, in the graph's order
};

static bool on_node(ggml_tensor * t, bool ask, void * data) {
    if (t->op != GGML_OP_FLASH_ATTN_EXT) {
        return false;
    }
    if (!ask) {
        const ggml_tensor * q = t->src[0];
        seen::layer layer = { q->ne[0], q->ne[2], 0.0f, 0.0f, {} };
        memcpy(&layer.scale, (const float *) t->op_params, sizeof(float));
        memcpy(&layer.softcap, (const float *) t->op_params + 2, sizeof(float));
        for (int64_t h = 0; h < q->ne[2]; ++h) {
            std::vector<float> head(q->ne[0]);
            ggml_backend_tensor_get(q, head.data(), (q->ne[1] - 1) * q->nb[1] + h * q->nb[2], head.size() * sizeof(float));
            layer.q.insert(layer.q.end(), head.begin(), head.end());
        }
        static_cast<seen *>(data)->now.push_back(std::move(layer));
    }
    return true;
}

// how many of the rows that are kept after the first recall are those of the rule. n_asked: of each head
static void check_rows(llama_model * model, const llama_snapkv_params & sp, uint32_t n_asked) {
    seen got;
    llama_context_params cp = context_params();
    cp.cb_eval = on_node;
    cp.cb_eval_user_data = &got;
    auto ctx = make(model, sp, cp);
    const auto tokens = make_tokens(model, N, 1);
    CHECK(prefill(ctx.get(), tokens) == 0);
    CHECK(events(ctx.get()).empty());
    uint32_t begin = 0;
    uint32_t end = 0;
    CHECK(holds_vault_bytes(ctx.get(), begin, end));
    const auto before = base_of(ctx.get()).snapkv.get(0);

    // an answer that says what the prompt's beginning does
    const tokens_t answer(tokens.begin() + 20, tokens.begin() + 20 + EVERY);
    std::vector<std::vector<seen::layer>> of_tokens;
    for (uint32_t i = 0; i + 1 < EVERY; ++i) {
        got.now.clear();
        CHECK(decode(ctx.get(), { answer[i] }, (llama_pos) (N + i)) == 0);
        of_tokens.push_back(got.now);
    }
    CHECK(events(ctx.get()).empty());
    CHECK(base_of(ctx.get()).snapkv.get(0) == before);
    const auto cells_before = cells_of(ctx.get());
    const uint32_t n_used = base_of(ctx.get()).get_cells(0).get_used();
    got.now.clear();
    CHECK(decode(ctx.get(), { answer.back() }, (llama_pos) (N + EVERY - 1)) == 0);
    of_tokens.push_back(got.now);
    of_tokens.erase(of_tokens.begin(), of_tokens.end() - QUERIES);

    CHECK(events(ctx.get()).size() == 1);
    const auto event = events(ctx.get()).empty() ? llama_snapkv_recall_event() : events(ctx.get())[0];
    CHECK(event.pos == (llama_pos) (N + EVERY - 1));
    CHECK(event.n_rows > 0 && event.n_bytes > 0);
    CHECK(holds_vault_bytes(ctx.get(), begin, end));

    // all other cells are as before, but for that of the new token, and no more are in use
    CHECK(base_of(ctx.get()).get_cells(0).get_used() == n_used + 1);
    const auto cells_after = cells_of(ctx.get());
    uint32_t n_changed = 0;
    for (size_t i = 0; i < cells_after.size(); ++i) {
        const size_t row = cells_after[i].size() / base_of(ctx.get()).get_size();
        for (uint32_t c = 0; c < base_of(ctx.get()).get_size(); ++c) {
            n_changed += (c < begin || c >= end) && memcmp(&cells_before[i][c * row], &cells_after[i][c * row], row) != 0;
        }
    }
    CHECK(n_changed == cells_after.size());

    // the rows
    const auto after = base_of(ctx.get()).snapkv.get(0);
    uint64_t n_replaced = 0;
    uint64_t n_same = 0;
    uint64_t n_all = 0;
    // nodes come in the order of the layers that attend: full attention is that of the cached ones
    std::vector<int32_t> attending;
    const auto & hparams = model->hparams;
    for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
        if (!hparams.is_recr(il)) {
            attending.push_back((int32_t) il);
        }
    }
    CHECK(of_tokens.back().size() == attending.size());
    for (uint32_t ic = 0; ic < after->layers.size() && of_tokens.back().size() == attending.size(); ++ic) {
        const auto & kept = after->layers[ic];
        llama_snapkv_vault_info info = {};
        info.size = sizeof(info);
        CHECK(llama_snapkv_get_vault_info(ctx.get(), 0, ic, &info));
        std::vector<float> q((size_t) info.head_dim * info.n_queries * info.n_head);
        std::vector<float> k((size_t) info.head_dim * N * info.n_head_kv);
        CHECK(llama_snapkv_vault_read(ctx.get(), 0, ic, q.data(), k.data(), nullptr));
        CHECK(info.n_queries >= WINDOW);
        for (uint32_t h = 0; h < kept.n_head_kv; ++h) {
            const float * kh = k.data() + (size_t) h * N * info.head_dim;
            const uint32_t g = info.n_head / info.n_head_kv;
            std::vector<std::vector<const float *>> asked(g);
            for (uint32_t i = 0; i < g; ++i) {
                for (uint32_t t = info.n_queries - WINDOW; t < info.n_queries; ++t) {
                    asked[i].push_back(q.data() + ((size_t) (h * g + i) * info.n_queries + t) * info.head_dim);
                }
            }
            std::vector<std::vector<const float *>> asks;
            float scale = 0.0f;
            float softcap = 0.0f;
            for (const int32_t reader : llama_snapkv_readers(base_of(ctx.get()), kept.il)) {
                const size_t node = std::find(attending.begin(), attending.end(), reader) - attending.begin();
                const auto & layer = of_tokens.back()[node];
                scale = layer.scale;
                softcap = layer.softcap;
                const int64_t per = layer.n_head / kept.n_head_kv;
                for (int64_t i = h * per; i < (h + 1) * per; ++i) {
                    asks.emplace_back();
                    for (const auto & token : of_tokens) {
                        asks.back().push_back(token[node].q.data() + i * layer.head_dim);
                    }
                }
            }
            std::vector<bool> can_come;
            const auto old_votes = votes(kh, info.head_dim, asked, scale, softcap, n_asked);
            auto scores = votes(kh, info.head_dim, asks, scale, softcap, n_asked, &can_come);
            std::vector<int32_t> old_ids(before->layers[ic].ids.begin() + h * kept.n_kept, before->layers[ic].ids.begin() + (h + 1) * kept.n_kept);
            const std::vector<int32_t> ids(kept.ids.begin() + h * kept.n_kept, kept.ids.begin() + (h + 1) * kept.n_kept);
            for (const int32_t id : old_ids) {
                can_come[id] = true;
                scores[id] = sp.recall_margin * std::max(scores[id], FADE * old_votes[id]);
                scores[id] += (uint32_t) id < N_SINK ? 1000.0 : 0.0;
            }
            for (uint32_t i = 0; i < N; ++i) {
                scores[i] = can_come[i] ? scores[i] : -1.0;
            }
            std::vector<int32_t> order(N - WINDOW);
            for (uint32_t i = 0; i < order.size(); ++i) {
                order[i] = (int32_t) i;
            }
            std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
            for (uint32_t i = 0; i < kept.n_kept; ++i) {
                n_same += std::count(ids.begin(), ids.end(), order[i]);
                n_replaced += !std::count(old_ids.begin(), old_ids.end(), ids[i]);
            }
            n_all += kept.n_kept;
            CHECK(std::count(ids.begin(), ids.end(), order[0]) == 1);
            for (uint32_t i = 0; i < N_SINK; ++i) {
                CHECK(std::count(ids.begin(), ids.end(), (int32_t) i) == 1);
            }
            std::vector<int32_t> told(kept.n_kept);
            CHECK(llama_snapkv_kept(ctx.get(), 0, ic, h, told.data(), kept.n_kept) == kept.n_kept);
            CHECK(std::is_sorted(told.begin(), told.end()) && std::is_permutation(told.begin(), told.end(), ids.begin()));
            CHECK(std::adjacent_find(told.begin(), told.end()) == told.end());
        }
    }
    CHECK(n_replaced == event.n_rows);
    CHECK(n_same >= 0.97 * n_all); // K is rounded, and so are the queries
    if (n_same < 0.97 * n_all) {
        printf("%llu of %llu rows\n", (unsigned long long) n_same, (unsigned long long) n_all);
    }

    // the next ones, in batches
    CHECK(decode(ctx.get(), make_tokens(model, EVERY + 3, 5), (llama_pos) (N + EVERY)) == 0);
    CHECK(events(ctx.get()).size() == 2);
    CHECK(holds_vault_bytes(ctx.get(), begin, end));
    CHECK(decode(ctx.get(), make_tokens(model, EVERY - 1, 6), (llama_pos) (N + 2 * EVERY + 3)) == 0);
    CHECK(events(ctx.get()).size() == 2);
}

static void test_rows(llama_model * model) {
    check_rows(model, snapkv_params(), N);
}

// rows come in only if they are worth so much more than those that go
static void test_margin(llama_model * model) {
    auto sp = snapkv_params();
    sp.recall_margin = 1.005f;
    check_rows(model, sp, N);
    sp.recall_margin = 1e6f;
    auto ctx = make(model, sp);
    const auto tokens = make_tokens(model, N, 1);
    CHECK(prefill(ctx.get(), tokens) == 0);
    const auto before = kept_of(ctx.get(), 0);
    CHECK(decode(ctx.get(), tokens_t(tokens.begin() + 20, tokens.begin() + 20 + EVERY), N) == 0);
    CHECK(events(ctx.get()).size() == 1 && events(ctx.get())[0].n_rows == 0);
    CHECK(kept_of(ctx.get(), 0) == before);
}

// more rows than are asked one by one
static llama_snapkv_params with_index(int32_t delay = 0) {
    llama_snapkv_params sp = snapkv_params();
    sp.recall_rows = 1; // and so four times those that are kept
    sp.recall_delay = delay;
    return sp;
}

static void test_index(llama_model * model) {
    const uint32_t n_asked = 4 * (BUDGET - WINDOW);
    check_rows(model, with_index(), n_asked);

    // the index of a vault goes on with it, and is cut with it
    auto ctx = make(model, with_index());
    auto fresh = make(model, with_index());
    const auto tokens = make_tokens(model, N, 1);
    for (const uint32_t n : { 150u, 230u, 171u }) {
        auto prompt = tokens_t(tokens.begin(), tokens.begin() + n);
        prompt.back() = (llama_token) (n / 10);
        for (auto * c : { ctx.get(), fresh.get() }) {
            llama_snapkv_vault_clear(fresh.get(), 0);
            CHECK(prefill(c, prompt) == 0);
            CHECK(decode(c, tokens_t(tokens.begin() + 20, tokens.begin() + 20 + EVERY), (llama_pos) n) == 0);
            CHECK(events(c).size() == 1 && events(c)[0].bytes_index > 0);
        }
        const auto & index = access::snapkv(*ctx)->vaults.at(0).index;
        const auto & whole = access::snapkv(*fresh)->vaults.at(0).index;
        const bool is_there = index.size() == n && whole.size() == n && index.bytes() > 0 && index.bytes() == whole.bytes();
        CHECK(is_there);
        if (!is_there) {
            return;
        }
        size_t n_off = 0;
        for (uint32_t ic = 0; ic < llama_snapkv_n_layer(ctx.get()); ++ic) {
            const auto & layer = access::snapkv(*ctx)->vaults.at(0).layers[ic];
            for (size_t i = 0; i < 2 * (size_t) llama_snapkv_index::n_stretches(n) * layer.head_dim_k * layer.n_head_kv; ++i) {
                const uint32_t h = (uint32_t) (i % layer.n_head_kv);
                n_off += std::fabs(ggml_fp16_to_fp32(index.mean(ic, h, 0)[i / layer.n_head_kv]) - ggml_fp16_to_fp32(whole.mean(ic, h, 0)[i / layer.n_head_kv])) > 1e-2f;
            }
        }
        CHECK(n_off == 0); // K of chunks that begin elsewhere is rounded otherwise
    }
}

// rows that other threads look for while the answer goes on: the same, at a token that no clock decides
static void test_delay(llama_model * model) {
    static constexpr int32_t DELAY = 3;
    const auto tokens = make_tokens(model, N, 1);
    std::vector<int32_t> expected;
    std::vector<int32_t> first;
    for (const int32_t delay : { 0, DELAY, DELAY, DELAY }) {
        auto sp = with_index(delay);
        auto ctx = make(model, sp);
        CHECK(prefill(ctx.get(), tokens) == 0);
        const auto before = kept_of(ctx.get(), 0);
        uint32_t i = 0;
        for (; i < EVERY + delay; ++i) {
            CHECK(events(ctx.get()).empty() && kept_of(ctx.get(), 0) == before);
            CHECK(decode(ctx.get(), { tokens[20 + i] }, (llama_pos) (N + i)) == 0);
        }
        CHECK(events(ctx.get()).size() == 1 && events(ctx.get())[0].pos == (llama_pos) (N + EVERY + delay - 1));
        expected = expected.empty() ? kept_of(ctx.get(), 0) : expected;
        CHECK(kept_of(ctx.get(), 0) == expected && expected != before);
        uint32_t begin = 0;
        uint32_t end = 0;
        CHECK(holds_vault_bytes(ctx.get(), begin, end));
        for (; i < 4 * EVERY + 1; ++i) {
            CHECK(decode(ctx.get(), { tokens[20 + i] }, (llama_pos) (N + i)) == 0);
        }
        CHECK(events(ctx.get()).size() == (delay == 0 ? 4 : 3));
        CHECK(holds_vault_bytes(ctx.get(), begin, end));
        first = first.empty() && delay > 0 ? kept_of(ctx.get(), 0) : first;
        CHECK(delay == 0 || kept_of(ctx.get(), 0) == first);

        // while rows are looked for, all that they are looked for in may go
        CHECK(prefill(ctx.get(), tokens) == 0);
        CHECK(events(ctx.get()).empty());
        CHECK(decode(ctx.get(), tokens_t(tokens.begin() + 20, tokens.begin() + 20 + EVERY), N) == 0);
        llama_snapkv_vault_clear(ctx.get(), 0);
    }
}

static tests_t tests_of(const llama_model *) {
    return {
        { "rows", test_rows },
        { "margin", test_margin },
        { "index", test_index },
        { "delay", test_delay },
    };
}

int main(int argc, char ** argv) {
    imaginary::take_option(argc, argv);
    return run_tests(argc, argv, tests_of);
}
