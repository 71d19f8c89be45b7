// Recall while answering: the rows that an answer's tokens ask for are in the cache, with the vault's bytes, and nothing else has
// changed. What should be there is counted here from the queries that a callback of the context's own has seen, in double.
//
//   test-snapkv-recall MODEL.gguf ...

#include "llama-cpp.h"
#include "snapkv.h"
#include "test-snapkv-recall-reference.h"
#include "test-snapkv-sequences.h"

#include "recall/recall.h"
#include "state/cells.h"
#include "upstream/access.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

using access = llama_snapkv_access;

static constexpr uint32_t N_CTX = 512;
static constexpr uint32_t BUDGET = 48;
static constexpr uint32_t WINDOW = 16;
static constexpr uint32_t N_SINK = 2;
static constexpr uint32_t EVERY = 8;
static constexpr uint32_t QUERIES = 3;
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

static llama_context_params context_params(seen * to = nullptr, uint32_t n_seq = 1) {
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = N_CTX * n_seq;
    cp.n_seq_max = n_seq;
    cp.kv_unified = false;
    cp.n_batch = 64;
    cp.n_ubatch = 64;
    cp.n_threads = cp.n_threads_batch = 1;
    cp.no_perf = true;
    cp.cb_eval = to ? on_node : nullptr;
    cp.cb_eval_user_data = to;
    return cp;
}

static llama_snapkv_params snapkv_params(uint32_t every = EVERY) {
    llama_snapkv_params sp = llama_snapkv_default_params();
    sp.budget = BUDGET;
    sp.window_size = WINDOW;
    sp.n_sink = N_SINK;
    sp.kernel_size = 3;
    sp.decode_cells = 64;
    sp.vault = true;
    sp.recall_every = every;
    sp.recall_queries = QUERIES;
    sp.recall_rows = 0;
    sp.recall_delay = 0;
    return sp;
}

static llama_context_ptr make(llama_model * model, const llama_snapkv_params & sp, seen * to = nullptr, uint32_t n_seq = 1) {
    llama_context_ptr ctx(llama_snapkv_init_from_model(model, context_params(to, n_seq), sp));
    CHECK(ctx);
    return ctx;
}

static llama_context_ptr make(llama_model * model, uint32_t every = EVERY, seen * to = nullptr, uint32_t n_seq = 1) {
    return make(model, snapkv_params(every), to, n_seq);
}

// tokens of each of these sequences, from its position on, in one batch
struct part {
    llama_seq_id seq_id;
    tokens_t tokens;
    llama_pos pos;
};

static int32_t decode(llama_context * ctx, const std::vector<part> & parts) {
    llama_batch batch = llama_batch_init(256, 0, 1);
    for (const auto & part : parts) {
        for (size_t j = 0; j < part.tokens.size(); ++j) {
            const int32_t i = batch.n_tokens++;
            batch.token[i] = part.tokens[j];
            batch.pos[i] = part.pos + (llama_pos) j;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = part.seq_id;
            batch.logits[i] = j + 1 == part.tokens.size();
        }
    }
    const int32_t rc = llama_snapkv_decode(ctx, batch);
    llama_batch_free(batch);
    return rc;
}

static int32_t decode(llama_context * ctx, const tokens_t & tokens, llama_pos pos) {
    return decode(ctx, { { 0, tokens, pos } });
}

static std::vector<llama_snapkv_recall_event> events(llama_context * ctx, llama_seq_id seq_id = 0) {
    std::vector<llama_snapkv_recall_event> res(llama_snapkv_recalls(ctx, seq_id, nullptr, 0));
    CHECK(llama_snapkv_recalls(ctx, seq_id, res.data(), (uint32_t) res.size()) == res.size());
    return res;
}

static llama_kv_cache & base_of(llama_context * ctx) {
    return *llama_snapkv_memory_of(*ctx).base;
}

static bool is_on_host(llama_context * ctx) {
    return ggml_backend_buffer_is_host(access::layers(base_of(ctx))[0].k->buffer);
}

// K and V of each cached layer, [n_cells] rows
static std::vector<bytes_t> cells_of(llama_context * ctx, llama_seq_id seq_id = 0) {
    std::vector<bytes_t> res;
    for (const auto & layer : access::layers(base_of(ctx))) {
        for (const ggml_tensor * t : access::tensors(layer, base_of(ctx).get_stream(seq_id))) {
            res.emplace_back(ggml_nbytes(t));
            ggml_backend_tensor_get(t, res.back().data(), 0, res.back().size());
        }
    }
    return res;
}

// are all kept rows the vault's, byte by byte? begin: of the kept rows' cells
static bool holds_vault_bytes(llama_context * ctx, uint32_t & begin, uint32_t & end, llama_seq_id seq_id = 0) {
    const auto & base = base_of(ctx);
    const auto record = base.snapkv.get(seq_id);
    const auto & vault = access::snapkv(*ctx)->vaults.at(seq_id);
    const auto cells = cells_of(ctx, seq_id);
    std::tie(begin, end) = llama_snapkv_cells_before(base, seq_id, record->pos_exact());
    end += begin;
    bool res = end - begin == BUDGET - WINDOW;
    size_t i_tensor = 0;
    for (uint32_t ic = 0; ic < record->layers.size(); ++ic) {
        const auto & kept = record->layers[ic];
        for (const bool is_v : { false, true }) {
            const size_t row = is_v ? vault.layers[ic].row_v : vault.layers[ic].row_k;
            if (row == 0) {
                continue;
            }
            const auto & bytes = cells[i_tensor++];
            const size_t head = row / kept.n_head_kv;
            for (uint32_t h = 0; h < kept.n_head_kv; ++h) {
                for (uint32_t i = 0; i < kept.n_kept; ++i) {
                    const int32_t id = kept.ids[h * kept.n_kept + i];
                    res = res && memcmp(&bytes[(begin + i) * row + h * head], vault.row(is_v, ic, id) + h * head, head) == 0;
                }
            }
        }
    }
    return res;
}

// how many of the rows that are kept after the first recall are those of the rule. n_asked: of each head
static void check_rows(llama_model * model, const llama_snapkv_params & sp, uint32_t n_asked) {
    seen got;
    auto ctx = make(model, sp, &got);
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
                scores[id] = std::max(scores[id], FADE * old_votes[id]);
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
        CHECK(index.size() == n && whole.size() == n && index.bytes() == whole.bytes());
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

// until the first recall the logits are those without it, bit for bit
static void test_until_then(llama_model * model) {
    std::vector<row_t> rows[2];
    for (const bool on : { false, true }) {
        auto ctx = make(model, on ? EVERY : 0);
        CHECK(prefill(ctx.get(), make_tokens(model, N, 1)) == 0);
        for (uint32_t i = 0; i < EVERY + 1; ++i) {
            rows[on].push_back(logits(ctx.get()));
            CHECK(decode(ctx.get(), { (llama_token) i }, (llama_pos) (N + i)) == 0);
        }
        CHECK(events(ctx.get()).size() == (on ? 1 : 0));
        rows[on].push_back(logits(ctx.get()));
    }
    for (uint32_t i = 0; i < EVERY + 1; ++i) {
        CHECK(rows[0][i] == rows[1][i]);
    }
    CHECK(rows[0].back() != rows[1].back());
}

static void test_protected(llama_model * model) {
    auto ctx = make(model);
    const auto tokens = make_tokens(model, N, 1);
    const llama_snapkv_span span = { 60, 85 };
    llama_snapkv_prompt prompt = llama_snapkv_default_prompt(0, tokens.data(), N);
    prompt.protected_spans = &span;
    prompt.n_protected = 1;
    CHECK(llama_snapkv_prefill(ctx.get(), &prompt) == 0);
    for (uint32_t i = 0; i < 3 * EVERY; ++i) {
        CHECK(decode(ctx.get(), { tokens[20 + i] }, (llama_pos) (N + i)) == 0);
    }
    CHECK(events(ctx.get()).size() == 3);
    const auto record = base_of(ctx.get()).snapkv.get(0);
    for (const auto & layer : record->layers) {
        for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
            const auto first = layer.ids.begin() + h * layer.n_kept;
            for (int32_t id = span.begin; id < span.end; ++id) {
                CHECK(std::count(first, first + layer.n_kept, id) == 1);
            }
        }
    }
    // a prompt of its own protects nothing, and begins anew
    CHECK(prefill(ctx.get(), tokens) == 0);
    CHECK(events(ctx.get()).empty());
}

struct counter {
    int64_t at;
    int64_t calls;
};

// aborted at some call of the callback: within llama_decode(), or within the recall, which then has changed nothing
static void test_abort(llama_model * model) {
    if (!is_on_host(make(model).get())) {
        return; // a device does not ask
    }
    const auto tokens = make_tokens(model, N, 1);
    const auto begin = [&](llama_context * ctx, counter * c) {
        CHECK(prefill(ctx, tokens) == 0);
        CHECK(decode(ctx, tokens_t(tokens.begin() + 20, tokens.begin() + 19 + EVERY), N) == 0);
        llama_set_abort_callback(ctx, [](void * data) { return ++static_cast<counter *>(data)->calls >= static_cast<counter *>(data)->at; }, c);
        return base_of(ctx).snapkv.get(0);
    };
    counter all = { INT64_MAX, 0 };
    auto ctx = make(model);
    begin(ctx.get(), &all);
    CHECK(decode(ctx.get(), { 7 }, (llama_pos) (N + EVERY - 1)) == 0);
    CHECK(events(ctx.get()).size() == 1);

    // the recall comes last
    for (const int64_t at : { (int64_t) 3, all.calls - 2, all.calls }) {
        counter c = { at, 0 };
        auto other = make(model);
        const auto record = begin(other.get(), &c);
        const int32_t rc = decode(other.get(), { 7 }, (llama_pos) (N + EVERY - 1));
        CHECK(rc == (at == 3 ? 2 : 0));
        CHECK(events(other.get()).empty());
        CHECK(base_of(other.get()).snapkv.get(0) == record);
        uint32_t first = 0;
        uint32_t last = 0;
        CHECK(holds_vault_bytes(other.get(), first, last));
        if (at == 3) {
            continue;
        }
        // the next one comes as usual
        llama_set_abort_callback(other.get(), nullptr, nullptr);
        CHECK(decode(other.get(), make_tokens(model, EVERY, 5), (llama_pos) (N + EVERY)) == 0);
        CHECK(events(other.get()).size() == 1);
    }
}

// what was saved after a recall goes on as it would have; and from the vault of a prompt that the sequence no longer holds nothing is recalled
static void test_state(llama_model * model) {
    auto ctx = make(model);
    const auto tokens = make_tokens(model, N, 1);
    CHECK(prefill(ctx.get(), tokens) == 0);
    CHECK(decode(ctx.get(), tokens_t(tokens.begin() + 20, tokens.begin() + 20 + EVERY), N) == 0);
    CHECK(events(ctx.get()).size() == 1);
    bytes_t state(llama_state_seq_get_size(ctx.get(), 0));
    CHECK(llama_state_seq_get_data(ctx.get(), state.data(), state.size(), 0) == state.size());
    CHECK(decode(ctx.get(), { 7 }, (llama_pos) (N + EVERY)) == 0);
    const auto expected = logits(ctx.get());

    auto other = make(model);
    CHECK(prefill(other.get(), make_tokens(model, N, 77)) == 0);
    CHECK(llama_state_seq_set_data(other.get(), state.data(), state.size(), 0) == state.size());
    CHECK(decode(other.get(), { 7 }, (llama_pos) (N + EVERY)) == 0);
    // on a device sums of sliding windows are split by where their rows lie
    CHECK(is_on_host(other.get()) ? logits(other.get()) == expected : error_of(logits(other.get()), expected) <= MAX_ERROR);
    CHECK(decode(other.get(), make_tokens(model, EVERY, 5), (llama_pos) (N + EVERY + 1)) == 0);
    CHECK(events(other.get()).empty());
}

// sequences in one batch recall at times of their own, each what it recalls alone; and no other one is touched
static void test_sequences(llama_model * model) {
    static constexpr llama_seq_id N_SEQ = 3;
    const uint32_t n_new = 2 * EVERY + 3;
    auto prompt = [&](llama_seq_id s) { return make_tokens(model, N, 1 + 50 * s); };
    auto token = [&](llama_seq_id s, uint32_t i) { return prompt(s)[20 + i]; };

    // one after the other
    std::vector<std::vector<int32_t>> alone;
    auto ctx = make(model, EVERY, nullptr, N_SEQ);
    for (llama_seq_id s = 0; s < N_SEQ; ++s) {
        CHECK(prefill(ctx.get(), prompt(s), s) == 0);
    }
    for (llama_seq_id s = 0; s < N_SEQ; ++s) {
        std::map<llama_seq_id, bytes_t> others;
        for (llama_seq_id other = 0; other < N_SEQ; ++other) {
            others[other] = state_of(ctx.get(), other);
        }
        for (uint32_t i = 0; i < n_new; ++i) {
            CHECK(decode(ctx.get(), { { s, { token(s, i) }, (llama_pos) (N + i) } }) == 0);
        }
        alone.push_back(kept_of(ctx.get(), s));
        CHECK(events(ctx.get(), s).size() == 2 && events(ctx.get(), s)[0].n_rows > 0);
        for (llama_seq_id other = 0; other < N_SEQ; ++other) {
            CHECK((state_of(ctx.get(), other) == others[other]) == (other != s));
            CHECK(events(ctx.get(), other).size() == (other > s ? 0 : 2));
        }
    }

    // side by side; the second one comes later, and for a while is not there
    for (llama_seq_id s = 0; s < N_SEQ; ++s) {
        llama_snapkv_vault_clear(ctx.get(), s);
        CHECK(prefill(ctx.get(), prompt(s), s) == 0);
        CHECK(events(ctx.get(), s).empty());
    }
    std::vector<uint32_t> n_done(N_SEQ);
    for (uint32_t i = 0; n_done != std::vector<uint32_t>(N_SEQ, n_new); ++i) {
        std::vector<part> parts;
        for (llama_seq_id s = 0; s < N_SEQ; ++s) {
            if (n_done[s] < n_new && (s != 1 || (i >= 3 && i % 4 != 0))) {
                parts.push_back({ s, { token(s, n_done[s]) }, (llama_pos) (N + n_done[s]) });
                n_done[s]++;
            }
        }
        CHECK(parts.empty() || decode(ctx.get(), parts) == 0);
        for (llama_seq_id s = 0; s < N_SEQ; ++s) {
            CHECK(events(ctx.get(), s).size() == n_done[s] / EVERY);
        }
    }
    for (llama_seq_id s = 0; s < N_SEQ; ++s) {
        uint32_t begin = 0;
        uint32_t end = 0;
        CHECK(holds_vault_bytes(ctx.get(), begin, end, s));
        CHECK(events(ctx.get(), s)[0].pos == (llama_pos) (N + EVERY - 1));
        const auto found = kept_of(ctx.get(), s);
        CHECK(found.size() == alone[s].size());
        // in ascending order, a row that differs moves those between it and its place
        size_t n_same = 0;
        const size_t n_kept = BUDGET - WINDOW;
        for (size_t i = 0; i < found.size(); ++i) {
            const auto first = alone[s].begin() + i / n_kept * n_kept;
            n_same += std::binary_search(first, first + n_kept, found[i]);
        }
        CHECK(n_same >= 0.97 * found.size()); // products of several columns are rounded in another order
    }
}

static void test_refused(llama_model * model) {
    auto refused = [&](auto change, const char * reason, uint32_t n_seq_max = 1) {
        llama_snapkv_params sp = snapkv_params();
        llama_context_params cp = context_params(nullptr, n_seq_max);
        cp.kv_unified = true;
        change(sp);
        const bool no = !llama_snapkv_supported(model, cp, sp);
        if (!no || !strstr(llama_snapkv_last_error(), reason)) {
            printf("expected '%s', got '%s'\n", reason, llama_snapkv_last_error());
            return false;
        }
        return true;
    };
    CHECK(refused([](auto & sp) { sp.vault = false; }, "takes rows from the vault"));
    CHECK(refused([](auto & sp) { sp.recall_queries = 0; }, "recall_queries"));
    CHECK(refused([](auto & sp) { sp.recall_queries = EVERY + 1; }, "recall_queries"));
    CHECK(refused([](auto & sp) { sp.recall_delay = EVERY; }, "recall_delay"));
    CHECK(refused([](auto &) {}, "set kv_unified to false", 2));

    // a prompt that all stays of has nothing to recall, and no vault is none
    auto ctx = make(model);
    CHECK(prefill(ctx.get(), make_tokens(model, BUDGET, 1)) == 0);
    CHECK(decode(ctx.get(), make_tokens(model, EVERY, 5), BUDGET) == 0);
    CHECK(prefill(ctx.get(), make_tokens(model, N, 1)) == 0);
    llama_snapkv_vault_clear(ctx.get(), 0);
    CHECK(decode(ctx.get(), make_tokens(model, EVERY, 5), N) == 0);
    CHECK(events(ctx.get()).empty());
}

static tests_t tests_of(const llama_model *) {
    return {
        { "rows", test_rows },
        { "index", test_index },
        { "delay", test_delay },
        { "until then", test_until_then },
        { "protected", test_protected },
        { "abort", test_abort },
        { "state", test_state },
        { "sequences", test_sequences },
        { "refused", test_refused },
    };
}

int main(int argc, char ** argv) {
    return run_tests(argc, argv, tests_of);
}
