// A compacted sequence in the KV cache: what may be done with it, what is refused, what survives, and that every failure
// leaves a context that works.
//
//   test-snapkv-cache MODEL.gguf ...

#include "environment.h"
#include "llama-cpp.h"
#include "snapkv.h"
#include "test-snapkv-sequences.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

static constexpr uint32_t N_CTX = 256;
static constexpr uint32_t N = 150;
static constexpr uint32_t BUDGET = 48;
static constexpr uint32_t WINDOW = 8;
static constexpr uint32_t ROOM = 32;

static llama_context_params context_params(uint32_t n_seq_max = 1, bool unified = false) {
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = unified ? N_CTX : N_CTX * n_seq_max;
    cp.n_batch = 64;
    cp.n_ubatch = 64;
    cp.n_seq_max = n_seq_max;
    cp.kv_unified = unified;
    cp.no_perf = true;
    cp.n_threads = cp.n_threads_batch = 1; // so small a model is no work for two
    return cp;
}

static llama_snapkv_params snapkv_params() {
    llama_snapkv_params sp = llama_snapkv_default_params();
    sp.budget = BUDGET;
    sp.window_size = WINDOW;
    sp.decode_cells = ROOM;
    return sp;
}

static llama_token best(llama_context * ctx) {
    const float * logits = llama_get_logits_ith(ctx, -1);
    return (llama_token) (std::max_element(logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)))) - logits);
}

static int32_t decode(llama_context * ctx, llama_token token, llama_pos pos, llama_seq_id seq_id) {
    llama_batch batch = llama_batch_init(1, 0, 1);
    batch.n_tokens = 1;
    batch.token[0] = token;
    batch.pos[0] = pos;
    batch.n_seq_id[0] = 1;
    batch.seq_id[0][0] = seq_id;
    batch.logits[0] = true;
    const int32_t rc = llama_decode(ctx, batch);
    llama_batch_free(batch);
    return rc;
}

// greedy tokens after position n - 1, the first one given
static tokens_t generate(llama_context * ctx, llama_token first, uint32_t n_tokens, llama_seq_id seq_id = 0, llama_pos pos = N) {
    tokens_t res = { first };
    while (res.size() <= n_tokens) {
        if (decode(ctx, res.back(), pos++, seq_id) != 0) {
            break;
        }
        res.push_back(best(ctx));
    }
    return res;
}

static llama_snapkv_seq_info info(llama_context * ctx, llama_seq_id seq_id = 0) {
    llama_snapkv_seq_info res = {};
    res.size = sizeof(res);
    CHECK(llama_snapkv_get_seq_info(ctx, seq_id, &res));
    return res;
}

static llama_context_ptr make(llama_model * model, uint32_t n_seq_max = 1, bool unified = false) {
    llama_context_ptr ctx(llama_snapkv_init_from_model(model, context_params(n_seq_max, unified), snapkv_params()));
    CHECK(ctx);
    return ctx;
}

static void test_sizes(llama_model * model) {
    auto ctx = make(model);
    CHECK(llama_n_ctx(ctx.get()) == N_CTX);
    CHECK(info(ctx.get()).n_cells < N_CTX);
    CHECK(info(ctx.get()).n_cells >= BUDGET + ROOM);
    CHECK(prefill(ctx.get(), make_tokens(model, N, 1)) == 0);
    CHECK(info(ctx.get()).compacted && info(ctx.get()).n_prompt == N && info(ctx.get()).n_kept == BUDGET);
    CHECK(info(ctx.get()).n_free == info(ctx.get()).n_cells - BUDGET);
    CHECK(llama_memory_seq_pos_max(llama_get_memory(ctx.get()), 0) == (llama_pos) N - 1);
    CHECK(llama_memory_seq_pos_min(llama_get_memory(ctx.get()), 0) > 0);

    int32_t ids[BUDGET];
    for (uint32_t ic = 0; ic < llama_snapkv_n_layer(ctx.get()); ++ic) {
        for (uint32_t h = 0; h < llama_snapkv_n_head_kv(ctx.get(), ic); ++h) {
            CHECK(llama_snapkv_kept(ctx.get(), 0, ic, h, ids, BUDGET) == BUDGET - WINDOW);
            CHECK(std::is_sorted(ids, ids + BUDGET - WINDOW));
            CHECK(ids[0] >= 0 && ids[BUDGET - WINDOW - 1] < (int32_t) (N - WINDOW));
        }
    }
    CHECK(llama_snapkv_kept(ctx.get(), 0, 1000, 0, ids, BUDGET) == 0);
}

static void test_guards(llama_model * model) {
    auto ctx = make(model, 2);
    llama_memory_t mem = llama_get_memory(ctx.get());
    const auto tokens = make_tokens(model, N, 1);
    CHECK(prefill(ctx.get(), tokens) == 0);
    const llama_token first = best(ctx.get());
    const auto expected = generate(ctx.get(), first, 8);

    // rollback of what was generated: the same again
    CHECK(llama_memory_seq_rm(mem, 0, N, -1));
    CHECK(generate(ctx.get(), first, 8) == expected);

    // into the kept prefix: refused, and nothing has changed
    for (const auto & range : std::vector<std::pair<llama_pos, llama_pos>>{ { 0, 10 }, { 1, -1 }, { 100, -1 }, { N - WINDOW - 1, -1 }, { N - BUDGET, N - 2 } }) {
        CHECK(!llama_memory_seq_rm(mem, 0, range.first, range.second));
        CHECK(!llama_memory_seq_rm(mem, -1, range.first, range.second));
    }
    CHECK(llama_memory_seq_rm(mem, 0, N, -1));
    CHECK(generate(ctx.get(), first, 8) == expected);

    // shifts: refused
    CHECK(!llama_memory_can_shift(mem));
    const llama_pos pos_max = llama_memory_seq_pos_max(mem, 0);
    llama_memory_seq_add(mem, 0, 0, -1, 7);
    llama_memory_seq_div(mem, 0, 0, -1, 2);
    CHECK(llama_memory_seq_pos_max(mem, 0) == pos_max);

    // copies: all of it, guard included
    CHECK(llama_memory_seq_rm(mem, 0, N, -1));
    llama_memory_seq_cp(mem, 0, 1, -1, -1);
    CHECK(info(ctx.get(), 1).compacted);
    CHECK(!llama_memory_seq_rm(mem, 1, 100, -1));
    CHECK(generate(ctx.get(), first, 8, 1) == expected);
    CHECK(generate(ctx.get(), first, 8, 0) == expected);

    // the window may go, too
    CHECK(llama_memory_seq_rm(mem, 1, N - WINDOW, -1));
    CHECK(llama_memory_seq_rm(mem, 1, -1, -1));
    CHECK(!info(ctx.get(), 1).compacted);
    CHECK(info(ctx.get(), 0).compacted);
    llama_memory_seq_keep(mem, 0);
    CHECK(info(ctx.get(), 0).compacted);
    llama_memory_clear(mem, true);
    CHECK(!info(ctx.get(), 0).compacted);
    CHECK(prefill(ctx.get(), tokens) == 0);
    CHECK(generate(ctx.get(), first, 8) == expected);
}

static void test_state(llama_model * model) {
    auto ctx = make(model);
    CHECK(prefill(ctx.get(), make_tokens(model, N, 1)) == 0);
    const llama_token first = best(ctx.get());

    std::vector<uint8_t> seq(llama_state_seq_get_size(ctx.get(), 0));
    CHECK(llama_state_seq_get_data(ctx.get(), seq.data(), seq.size(), 0) == seq.size());
    std::vector<uint8_t> all(llama_state_get_size(ctx.get()));
    CHECK(llama_state_get_data(ctx.get(), all.data(), all.size()) == all.size());

    int32_t ids[BUDGET];
    CHECK(llama_snapkv_kept(ctx.get(), 0, 0, 0, ids, BUDGET) == BUDGET - WINDOW);
    const std::vector<int32_t> kept(ids, ids + BUDGET - WINDOW);
    const auto expected = generate(ctx.get(), first, 16);

    for (const bool whole : { false, true }) {
        // a context without SnapKV, too: the cells and the guard are the cache's
        for (const bool plain : { false, true }) {
            llama_context_params cp = context_params();
            cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
            llama_context_ptr other(plain ? llama_init_from_model(model, cp) : make(model).release());
            CHECK((whole ? llama_state_set_data(other.get(), all.data(), all.size()) : llama_state_seq_set_data(other.get(), seq.data(), seq.size(), 0)) > 0);
            CHECK(!llama_memory_seq_rm(llama_get_memory(other.get()), 0, 100, -1));
            CHECK(!llama_memory_can_shift(llama_get_memory(other.get())));
            CHECK(generate(other.get(), first, 16) == expected);
            if (!plain) {
                CHECK(llama_snapkv_kept(other.get(), 0, 0, 0, ids, BUDGET) == BUDGET - WINDOW);
                CHECK(std::vector<int32_t>(ids, ids + BUDGET - WINDOW) == kept);
            }
        }
    }

    // truncated: refused, and the context works
    auto other = make(model);
    for (const size_t size : { (size_t) 9, (size_t) 40, seq.size() / 2, seq.size() - 1 }) {
        CHECK(llama_state_seq_set_data(other.get(), seq.data(), size, 0) == 0);
        llama_memory_seq_rm(llama_get_memory(other.get()), 0, -1, -1);
        CHECK(!info(other.get()).compacted);
    }
    CHECK(prefill(other.get(), make_tokens(model, N, 1)) == 0);
    CHECK(generate(other.get(), first, 16) == expected);
}

static void test_sequences(llama_model * model, bool unified) {
    const auto a = make_tokens(model, N, 1);
    const auto b = make_tokens(model, N - 13, 77);
    tokens_t alone_a;
    tokens_t alone_b;
    {
        auto ctx = make(model);
        CHECK(prefill(ctx.get(), a) == 0);
        alone_a = generate(ctx.get(), best(ctx.get()), 12);
        CHECK(prefill(ctx.get(), b) == 0);
        alone_b = generate(ctx.get(), best(ctx.get()), 12, 0, (llama_pos) b.size());
    }

    auto ctx = make(model, 2, unified);
    CHECK(prefill(ctx.get(), a, 0) == 0);
    tokens_t got_a = { best(ctx.get()) };
    tokens_t got_b;
    for (uint32_t i = 0; i < 12; ++i) {
        if (i == 3) {
            CHECK(prefill(ctx.get(), b, 1) == 0); // while the other one is being generated
            got_b = { best(ctx.get()) };
        }
        CHECK(decode(ctx.get(), got_a.back(), (llama_pos) (a.size() + i), 0) == 0);
        got_a.push_back(best(ctx.get()));
        if (i >= 3) {
            CHECK(decode(ctx.get(), got_b.back(), (llama_pos) (b.size() + i - 3), 1) == 0);
            got_b.push_back(best(ctx.get()));
        }
    }
    CHECK(got_a == alone_a);
    CHECK(std::equal(got_b.begin(), got_b.end(), alone_b.begin()));
    CHECK(info(ctx.get(), 0).n_prompt == N && info(ctx.get(), 1).n_prompt == N - 13);
}

static void test_no_room(llama_model * model) {
    auto ctx = make(model);
    CHECK(prefill(ctx.get(), make_tokens(model, N, 1)) == 0);
    const llama_token first = best(ctx.get());
    const uint32_t n_free = info(ctx.get()).n_free;
    const auto all = generate(ctx.get(), first, n_free + 5);
    CHECK(all.size() == n_free + 1);
    CHECK(info(ctx.get()).n_free == 0);
    CHECK(decode(ctx.get(), all.back(), (llama_pos) (N + n_free), 0) == 1);
    CHECK(info(ctx.get()).compacted);
    CHECK(llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, N, -1)); // and it goes on
    CHECK(generate(ctx.get(), first, 4) == tokens_t(all.begin(), all.begin() + 5));
}

static void test_failures(llama_model * model) {
    const auto tokens = make_tokens(model, N, 1);
    auto ctx = make(model);
    CHECK(prefill(ctx.get(), tokens) == 0);
    const auto expected = generate(ctx.get(), best(ctx.get()), 8);
    auto works = [&]() { return prefill(ctx.get(), tokens) == 0 && generate(ctx.get(), best(ctx.get()), 8) == expected; };

    CHECK(prefill(ctx.get(), make_tokens(model, N_CTX + 1, 1)) < 0);
    CHECK(strstr(llama_snapkv_last_error(), "n_ctx"));
    CHECK(prefill(ctx.get(), tokens, 1) < 0);
    CHECK(works());

    auto bad = tokens;
    bad[70] = 1 << 30;
    CHECK(prefill(ctx.get(), bad) < 0);
    CHECK(works());

    // aborted at each call of the callback in turn
    struct counter {
        int at;
        int calls;
    };
    auto progress = [](uint64_t done, uint64_t total, void * data) -> bool {
        auto * c = static_cast<counter *>(data);
        return done <= total && ++c->calls < c->at;
    };
    for (int at = 1; at < 100; at += 2) {
        counter c = { at, 0 };
        llama_snapkv_prompt prompt = llama_snapkv_default_prompt(0, tokens.data(), N);
        prompt.progress = progress;
        prompt.progress_data = &c;
        const int32_t rc = llama_snapkv_prefill(ctx.get(), &prompt);
        if (rc == 0) {
            break;
        }
        CHECK(rc == 2);
        CHECK(info(ctx.get()).n_free == info(ctx.get()).n_cells);
    }
    CHECK(works());

    llama_snapkv_params single = snapkv_params();
    single.layer_group = 1; // auto may take one group of all layers, which has no hidden state
    CHECK(llama_snapkv_set_params(ctx.get(), single));
    for (const char * part : { "staging", "hidden state", "queries", "mask", "compute" }) {
        if (strcmp(part, "hidden state") == 0 && llama_snapkv_n_layer(ctx.get()) == 1) {
            continue; // one group has no hidden state between groups
        }
        set_variable("SNAPKV_TEST_FAIL_ALLOC", part);
        CHECK(prefill(ctx.get(), tokens) == -2);
        CHECK(strstr(llama_snapkv_last_error(), "out of memory"));
        set_variable("SNAPKV_TEST_FAIL_ALLOC", nullptr);
        CHECK(works());
    }
    set_variable("SNAPKV_TEST_FAIL_ALLOC", "cache");
    CHECK(!llama_snapkv_init_from_model(model, context_params(), snapkv_params()));
    set_variable("SNAPKV_TEST_FAIL_ALLOC", nullptr);
    CHECK(works());

    // a short prompt goes the ordinary way
    for (const uint32_t n : { 1u, WINDOW - 1, WINDOW, WINDOW + 1, BUDGET }) {
        CHECK(prefill(ctx.get(), make_tokens(model, n, 1)) == 0);
        CHECK(!info(ctx.get()).compacted);
    }
    CHECK(prefill(ctx.get(), make_tokens(model, BUDGET + 1, 1)) == 0);
    CHECK(info(ctx.get()).compacted);

    // one token, again and again: scores are all alike, and numbers
    CHECK(prefill(ctx.get(), tokens_t(N, tokens[0])) == 0);
    CHECK(best(ctx.get()) >= 0);
    llama_snapkv_stats stats = {};
    stats.size = sizeof(stats);
    CHECK(llama_snapkv_get_stats(ctx.get(), &stats) && stats.coverage > 0.0 && stats.coverage <= 1.0);
}

static void test_bad_prompts(llama_model * model) {
    const auto tokens = make_tokens(model, N, 1);
    const llama_snapkv_span spans[] = { { 10, 20 }, { 30, 25 } };
    auto ctx = make(model);
    auto refused = [&](auto change, const char * reason, llama_pos pos0 = 0) {
        llama_snapkv_prompt prompt = llama_snapkv_default_prompt(0, tokens.data(), N);
        change(prompt);
        const int32_t rc = pos0 == 0 ? llama_snapkv_prefill(ctx.get(), &prompt) : llama_snapkv_extend(ctx.get(), pos0, &prompt);
        if (rc != -1 || !strstr(llama_snapkv_last_error(), reason)) {
            printf("expected '%s', got %d: '%s'\n", reason, rc, llama_snapkv_last_error());
            return false;
        }
        return true;
    };
    const auto as_it_is = [](auto &) {};
    CHECK(llama_snapkv_prefill(ctx.get(), nullptr) == -1 && strstr(llama_snapkv_last_error(), "NULL"));
    CHECK(refused([](auto & p) { p.size -= 8; }, "versions"));
    CHECK(refused([](auto & p) { p.n_tokens = 0; }, "empty"));
    CHECK(refused([](auto & p) { p.tokens = nullptr; }, "empty"));
    CHECK(refused([](auto & p) { p.seq_id = 1; }, "sequence id 1"));
    CHECK(refused([](auto & p) { p.seq_id = -1; }, "sequence id -1"));
    CHECK(refused([](auto & p) { p.n_protected = 1; }, "protected_spans is NULL"));
    CHECK(refused([&](auto & p) { p.protected_spans = spans; p.n_protected = 2; }, "protected span [30, 25) is not a range"));
    CHECK(refused([](auto & p) { p.question = { -1, 4 }; }, "question [-1, 4) is not a range"));
    CHECK(refused([](auto & p) { p.question = { N - 4, N + 1 }; }, "which ends at 150"));
    CHECK(refused(as_it_is, "negative", -1));
    CHECK(refused(as_it_is, "n_ctx", N_CTX - N + 1));
    CHECK(refused(as_it_is, "no tokens side by side", 20));
    CHECK(info(ctx.get()).n_free == info(ctx.get()).n_cells); // none was evaluated
}

// what a prompt is given is its own: the next one knows nothing of it
static void test_prompts(llama_model * model) {
    const auto tokens = make_tokens(model, N, 1);
    auto ctx = make(model);
    auto kept_of = [&](uint32_t ic, uint32_t head) {
        std::vector<int32_t> ids(BUDGET - WINDOW);
        CHECK(llama_snapkv_kept(ctx.get(), 0, ic, head, ids.data(), BUDGET - WINDOW) == BUDGET - WINDOW);
        return ids;
    };
    auto kept = [&]() {
        std::vector<std::vector<int32_t>> res;
        for (uint32_t ic = 0; ic < llama_snapkv_n_layer(ctx.get()); ++ic) {
            for (uint32_t h = 0; h < llama_snapkv_n_head_kv(ctx.get(), ic); ++h) {
                res.push_back(kept_of(ic, h));
            }
        }
        return res;
    };
    auto holds = [&](llama_snapkv_span span) {
        const auto heads = kept();
        return std::all_of(heads.begin(), heads.end(), [&](const auto & head) {
            const auto first = std::lower_bound(head.begin(), head.end(), span.begin);
            return std::lower_bound(head.begin(), head.end(), span.end) - first == span.end - span.begin;
        });
    };
    auto n_voters = [&]() {
        llama_snapkv_stats stats = {};
        stats.size = sizeof(stats);
        CHECK(llama_snapkv_get_stats(ctx.get(), &stats));
        return stats.n_voters;
    };
    CHECK(prefill(ctx.get(), tokens) == 0);
    const auto expected = kept();

    const llama_snapkv_span first = { 11, 31 };
    const llama_snapkv_span later = { N - WINDOW, N + 2 };
    CHECK(!holds(first));
    int n_taps = 0;
    llama_snapkv_prompt prompt = llama_snapkv_default_prompt(0, tokens.data(), N);
    prompt.protected_spans = &first;
    prompt.n_protected = 1;
    prompt.question = { N - 5, N - 2 };
    prompt.tap = [](const llama_snapkv_tap_data *, void * data) { ++*static_cast<int *>(data); };
    prompt.tap_data = &n_taps;
    CHECK(llama_snapkv_prefill(ctx.get(), &prompt) == 0);
    CHECK(holds(first));
    CHECK(n_voters() == 3);
    CHECK(n_taps == (int) llama_snapkv_n_layer(ctx.get()));

    // the sequence goes on, and others are protected
    const auto more = make_tokens(model, 2 * WINDOW, 2);
    llama_snapkv_prompt next = llama_snapkv_default_prompt(0, more.data(), 2 * WINDOW);
    next.protected_spans = &later;
    next.n_protected = 1;
    CHECK(llama_snapkv_extend(ctx.get(), N, &next) == 0);
    CHECK(holds(later) && !holds(first));
    CHECK(n_voters() == WINDOW);

    CHECK(prefill(ctx.get(), tokens) == 0);
    CHECK(kept() == expected);
    CHECK(n_taps == (int) llama_snapkv_n_layer(ctx.get()));
}

static void test_params(llama_model * model) {
    auto refused = [&](auto change, const char * reason) {
        llama_snapkv_params sp = snapkv_params();
        change(sp);
        const bool no = !llama_snapkv_supported(model, context_params(), sp);
        if (!no || !strstr(llama_snapkv_last_error(), reason)) {
            printf("expected '%s', got '%s'\n", reason, llama_snapkv_last_error());
            return false;
        }
        return !llama_snapkv_init_from_model(model, context_params(), sp);
    };
    CHECK(refused([](auto & sp) { sp.size = 8; }, "version"));
    CHECK(refused([](auto & sp) { sp.window_size = 0; }, "window_size"));
    CHECK(refused([](auto & sp) { sp.kernel_size = 4; }, "odd"));
    CHECK(refused([](auto & sp) { sp.budget = WINDOW; }, "budget"));
    CHECK(refused([](auto & sp) { sp.n_sink = BUDGET - WINDOW; }, "budget"));
    CHECK(refused([](auto & sp) { sp.budget = 0; sp.keep_ratio = 0.0f; }, "keep_ratio"));
    CHECK(refused([](auto & sp) { sp.budget = 0; sp.keep_ratio = 1.5f; }, "keep_ratio"));
    CHECK(refused([](auto & sp) { sp.decode_cells = 0; }, "decode_cells"));

    llama_context_params cp = context_params();
    cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    CHECK(!llama_snapkv_supported(model, cp, snapkv_params()) && strstr(llama_snapkv_last_error(), "flash attention"));
    cp = context_params();
    cp.embeddings = true;
    CHECK(!llama_snapkv_supported(model, cp, snapkv_params()) && strstr(llama_snapkv_last_error(), "embeddings"));

    // the paper's ratio: floor(p*(n - w)) prefix rows
    llama_snapkv_params sp = snapkv_params();
    sp.budget = 0;
    sp.keep_ratio = 0.3f;
    llama_context_ptr ctx(llama_snapkv_init_from_model(model, context_params(), sp));
    CHECK(ctx && prefill(ctx.get(), make_tokens(model, N, 1)) == 0);
    CHECK(info(ctx.get()).n_kept == (uint32_t) (0.3 * (N - WINDOW)) + WINDOW);

    sp = snapkv_params();
    ctx = make(model);
    sp.budget = BUDGET - 10;
    CHECK(llama_snapkv_set_params(ctx.get(), sp));
    CHECK(prefill(ctx.get(), make_tokens(model, N, 1)) == 0 && info(ctx.get()).n_kept == BUDGET - 10);
    sp.budget = N_CTX / 2;
    CHECK(!llama_snapkv_set_params(ctx.get(), sp));
}

// a window that reaches over several ubatches selects the same rows as within one
static void test_window_over_ubatches(llama_model * model) {
    std::vector<int32_t> kept[2];
    for (const int i : { 0, 1 }) {
        llama_context_params cp = context_params();
        cp.n_batch = cp.n_ubatch = i == 0 ? 16 : 160;
        llama_snapkv_params sp = snapkv_params();
        sp.window_size = 40;
        sp.budget = 80;
        llama_context_ptr ctx(llama_snapkv_init_from_model(model, cp, sp));
        CHECK(ctx && prefill(ctx.get(), make_tokens(model, N, 1)) == 0);
        kept[i].resize(40);
        CHECK(llama_snapkv_kept(ctx.get(), 0, 0, 0, kept[i].data(), 40) == 40);
    }
    std::vector<int32_t> common;
    std::set_intersection(kept[0].begin(), kept[0].end(), kept[1].begin(), kept[1].end(), std::back_inserter(common));
    CHECK(common.size() >= 38); // other ubatches, other rounding
}

static tests_t tests_of(const llama_model *) {
    return {
        { "sizes", test_sizes },
        { "guards", test_guards },
        { "state", test_state },
        { "sequences", [](llama_model * m) { test_sequences(m, false); } },
        { "unified", [](llama_model * m) { test_sequences(m, true); } },
        { "no room", test_no_room },
        { "failures", test_failures },
        { "bad prompts", test_bad_prompts },
        { "prompts", test_prompts },
        { "parameters", test_params },
        { "window", test_window_over_ubatches },
    };
}

int main(int argc, char ** argv) {
    return run_tests(argc, argv, tests_of);
}
