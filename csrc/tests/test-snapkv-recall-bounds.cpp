// What recall while answering leaves as it is: logits until the first recall, protected rows, what was aborted or saved, and sequences
// beside it. And what has nothing to recall, or is refused.
//
//   test-snapkv-recall-bounds MODEL.gguf ...

#include "test-snapkv-recall-context.h"

#include "recall/recall.h"

#include <algorithm>
#include <map>

// until the first recall the logits are those without it, bit for bit
static void test_until_then(llama_model * model) {
    std::vector<row_t> rows[2];
    for (const bool on : { false, true }) {
        auto ctx = make(model, snapkv_params(on ? EVERY : 0));
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

// as often as given, or as a ranking takes the time of
static void test_every(llama_model * model) {
    auto sp = snapkv_params();
    sp.budget = 2048;
    sp.recall_rows = 8192;
    sp.recall_delay = -1;
    CHECK(llama_snapkv_recall_every(sp, 131072, false) == EVERY);
    CHECK(llama_snapkv_recall_delay(sp, 131072, false) == 7 * EVERY / 8 && llama_snapkv_recall_delay(sp, 131072, true) == 0);
    sp.recall_every = 128;
    CHECK(llama_snapkv_recall_delay(sp, 131072, false) == 77 && llama_snapkv_recall_delay(sp, 2048, false) == 7);
    sp.recall_every = UINT32_MAX;
    CHECK(llama_snapkv_recall_every(sp, 131072, true) == 16);
    CHECK(llama_snapkv_recall_every(sp, 2048, false) == 16);
    CHECK(llama_snapkv_recall_every(sp, 8192, false) == 43);
    CHECK(llama_snapkv_recall_every(sp, 131072, false) == 128);
    sp.recall_rows = 0;
    CHECK(llama_snapkv_recall_every(sp, 131072, false) == 683);
    sp.recall_delay = 20;
    CHECK(llama_snapkv_recall_every(sp, 2048, true) == 21);
    sp.recall_queries = 24;
    CHECK(llama_snapkv_recall_every(sp, 2048, true) == 24);

    auto ctx = make(model, snapkv_params(UINT32_MAX));
    CHECK(prefill(ctx.get(), make_tokens(model, N, 1)) == 0);
    for (uint32_t i = 0; i < 16; ++i) {
        CHECK(events(ctx.get()).empty() && decode(ctx.get(), { (llama_token) i }, (llama_pos) (N + i)) == 0);
    }
    CHECK(events(ctx.get()).size() == 1);
}

static void test_protected(llama_model * model) {
    auto ctx = make(model, snapkv_params());
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

static bool is_on_host(llama_context * ctx) {
    return ggml_backend_buffer_is_host(access::layers(base_of(ctx))[0].k->buffer);
}

struct counter {
    int64_t at;
    int64_t calls;
};

// aborted at some call of the callback: within llama_decode(), or within the recall, which then has changed nothing
static void test_abort(llama_model * model) {
    if (!is_on_host(make(model, snapkv_params()).get())) {
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
    auto ctx = make(model, snapkv_params());
    begin(ctx.get(), &all);
    CHECK(decode(ctx.get(), { 7 }, (llama_pos) (N + EVERY - 1)) == 0);
    CHECK(events(ctx.get()).size() == 1);

    // the recall comes last
    for (const int64_t at : { (int64_t) 3, all.calls - 2, all.calls }) {
        counter c = { at, 0 };
        auto other = make(model, snapkv_params());
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
    auto ctx = make(model, snapkv_params());
    const auto tokens = make_tokens(model, N, 1);
    CHECK(prefill(ctx.get(), tokens) == 0);
    CHECK(decode(ctx.get(), tokens_t(tokens.begin() + 20, tokens.begin() + 20 + EVERY), N) == 0);
    CHECK(events(ctx.get()).size() == 1);
    bytes_t state(llama_state_seq_get_size(ctx.get(), 0));
    CHECK(llama_state_seq_get_data(ctx.get(), state.data(), state.size(), 0) == state.size());
    CHECK(decode(ctx.get(), { 7 }, (llama_pos) (N + EVERY)) == 0);
    const auto expected = logits(ctx.get());

    auto other = make(model, snapkv_params());
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
    auto ctx = make(model, snapkv_params(), context_params(N_SEQ));
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
        llama_context_params cp = context_params(n_seq_max);
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
    CHECK(refused([](auto & sp) { sp.recall_margin = 0.5f; }, "recall_margin"));
    CHECK(refused([](auto &) {}, "set kv_unified to false", 2));

    // a prompt that all stays of has nothing to recall, and no vault is none
    auto ctx = make(model, snapkv_params());
    CHECK(prefill(ctx.get(), make_tokens(model, BUDGET, 1)) == 0);
    CHECK(decode(ctx.get(), make_tokens(model, EVERY, 5), BUDGET) == 0);
    CHECK(prefill(ctx.get(), make_tokens(model, N, 1)) == 0);
    llama_snapkv_vault_clear(ctx.get(), 0);
    CHECK(decode(ctx.get(), make_tokens(model, EVERY, 5), N) == 0);
    CHECK(events(ctx.get()).empty());
}

static tests_t tests_of(const llama_model *) {
    return {
        { "until then", test_until_then },
        { "every", test_every },
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
