// Models with recurrent layers: their state goes with a sequence, goes back where it was kept only, and is not left half-made by a
// failure. What begins with kept states is what a prefill of all tokens gives, bit for bit.
//
//   test-snapkv-hybrid [--imaginary] MODEL.gguf ...

#include "environment.h"
#include "imaginary-device.h"
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

static constexpr uint32_t N = 150;
static constexpr uint32_t BUDGET = 48;
static constexpr uint32_t WINDOW = 8;
static constexpr uint32_t UBATCH = 64;

static llama_context_params context_params() {
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = 1024;
    cp.n_seq_max = 2;
    cp.n_batch = cp.n_ubatch = UBATCH;
    cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    cp.no_perf = true;
    cp.n_threads = cp.n_threads_batch = 1; // so small a model is no work for two
    return cp;
}

static llama_snapkv_params snapkv_params() {
    llama_snapkv_params sp = llama_snapkv_default_params();
    sp.budget = BUDGET;
    sp.window_size = WINDOW;
    sp.decode_cells = 96;
    sp.layer_group = 1;
    return sp;
}

static llama_context_ptr make(llama_model * model, const llama_snapkv_params & sp = snapkv_params()) {
    return make_context(model, context_params(), sp);
}

static int32_t decode(llama_context * ctx, const tokens_t & tokens, llama_pos pos, llama_seq_id seq_id = 0) {
    llama_batch batch = llama_batch_init((int32_t) tokens.size(), 0, 1);
    for (; batch.n_tokens < (int32_t) tokens.size(); ++batch.n_tokens) {
        const int32_t i = batch.n_tokens;
        batch.token[i] = tokens[i];
        batch.pos[i] = pos + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = seq_id;
        batch.logits[i] = i + 1 == (int32_t) tokens.size();
    }
    const int32_t rc = llama_decode(ctx, batch);
    llama_batch_free(batch);
    return rc;
}

// logits after some tokens more
static std::vector<float> goes_on(llama_context * ctx, llama_seq_id seq_id = 0) {
    const llama_pos pos = llama_memory_seq_pos_max(llama_get_memory(ctx), seq_id) + 1;
    for (int i = 0; i < 5; ++i) {
        CHECK(decode(ctx, { 3 + i }, pos + i, seq_id) == 0);
    }
    return logits(ctx);
}

static bool is_empty(llama_context * ctx, llama_seq_id seq_id) {
    return llama_memory_seq_pos_max(llama_get_memory(ctx), seq_id) == -1;
}

static void test_no_way_back(llama_model * model) {
    auto ctx = make(model);
    llama_memory_t mem = llama_get_memory(ctx.get());
    CHECK(prefill(ctx.get(), make_tokens(model, N, 1)) == 0);
    CHECK(goes_on(ctx.get()).size() > 0);
    const auto before = state_of(ctx.get(), 0);
    for (const llama_pos p0 : { 1, 100, (int) N - 2, (int) N, (int) N + 4 }) {
        CHECK(!llama_memory_seq_rm(mem, 0, p0, -1));
    }
    CHECK(!llama_memory_seq_rm(mem, 0, 0, 10));
    llama_memory_seq_cp(mem, 0, 1, 0, 100);
    CHECK(is_empty(ctx.get(), 1));
    llama_memory_seq_add(mem, 0, 0, -1, 7);
    llama_memory_seq_div(mem, 0, 0, -1, 2);
    CHECK(state_of(ctx.get(), 0) == before);
    CHECK(llama_memory_seq_rm(mem, 0, N + 5, -1)); // nothing is there
    CHECK(state_of(ctx.get(), 0) == before);
    CHECK(llama_memory_seq_rm(mem, 0, -1, -1));
    CHECK(is_empty(ctx.get(), 0));
}

static void test_copies(llama_model * model) {
    auto ctx = make(model);
    CHECK(prefill(ctx.get(), make_tokens(model, N, 1)) == 0);
    const auto before = state_of(ctx.get(), 0, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
    llama_memory_seq_cp(llama_get_memory(ctx.get()), 0, 1, -1, -1);
    const auto expected = goes_on(ctx.get(), 0);
    CHECK(goes_on(ctx.get(), 1) == expected);

    // saved, and read into another context
    auto other = make(model);
    CHECK(prefill(ctx.get(), make_tokens(model, N, 1)) == 0);
    bytes_t saved(llama_state_seq_get_size(ctx.get(), 0));
    CHECK(llama_state_seq_get_data(ctx.get(), saved.data(), saved.size(), 0) == saved.size());
    CHECK(llama_state_seq_set_data(other.get(), saved.data(), saved.size(), 1) == saved.size());
    CHECK(state_of(other.get(), 1, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) == before);
    CHECK(goes_on(other.get(), 1) == expected);
    CHECK(llama_state_seq_set_data(other.get(), saved.data(), saved.size() / 2, 0) == 0);
    CHECK(is_empty(other.get(), 0));
}

// what another sequence holds is not touched; what the failed one held is gone
static void test_failures(llama_model * model) {
    auto ctx = make(model);
    const auto tokens = make_tokens(model, UBATCH + 36, 1);
    CHECK(prefill(ctx.get(), make_tokens(model, UBATCH + 16, 5), 1) == 0);
    const auto other = state_of(ctx.get(), 1);
    CHECK(prefill(ctx.get(), tokens) == 0);
    const auto whole = state_of(ctx.get(), 0);

    struct counter {
        int at;
        int calls;
    };
    int n_aborted = 0;
    for (int at = 1; at < 200; ++at) {
        counter c = { at, 0 };
        llama_snapkv_prompt prompt = llama_snapkv_default_prompt(0, tokens.data(), (uint32_t) tokens.size());
        prompt.progress = [](uint64_t, uint64_t, void * data) -> bool {
            auto * count = static_cast<counter *>(data);
            return ++count->calls < count->at;
        };
        prompt.progress_data = &c;
        const int32_t rc = llama_snapkv_prefill(ctx.get(), &prompt);
        if (rc == 0) {
            break;
        }
        n_aborted++;
        CHECK(rc == 2 && is_empty(ctx.get(), 0));
        CHECK(state_of(ctx.get(), 1) == other);
        if (at % 3 == 0) {
            CHECK(prefill(ctx.get(), tokens) == 0 && state_of(ctx.get(), 0) == whole);
        }
    }
    CHECK(n_aborted >= 3);
    for (const char * part : { "staging", "queries", "mask", "compute", "state" }) {
        set_variable("SNAPKV_TEST_FAIL_ALLOC", part);
        CHECK(prefill(ctx.get(), tokens) == -2 && is_empty(ctx.get(), 0));
        set_variable("SNAPKV_TEST_FAIL_ALLOC", nullptr);
        CHECK(state_of(ctx.get(), 1) == other);
        CHECK(prefill(ctx.get(), tokens) == 0 && state_of(ctx.get(), 0) == whole);
    }
}

// from the end of what a sequence holds; not from before, where no state was kept
static void test_extend(llama_model * model) {
    const auto tokens = make_tokens(model, 2 * UBATCH + 30, 1);
    const tokens_t begin(tokens.begin(), tokens.begin() + UBATCH);
    const tokens_t rest(tokens.begin() + UBATCH, tokens.end());
    std::vector<float> expected;
    bytes_t expected_state;
    {
        llama_context_ptr plain(llama_init_from_model(model, context_params()));
        for (uint32_t p = 0; p < tokens.size(); p += UBATCH) {
            CHECK(decode(plain.get(), { tokens.begin() + p, tokens.begin() + std::min<size_t>(p + UBATCH, tokens.size()) }, (llama_pos) p) == 0);
        }
        expected = logits(plain.get());
        expected_state = state_of(plain.get(), 0, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
    }
    for (const uint32_t group : { 1u, 2u, UINT32_MAX }) {
        auto sp = snapkv_params();
        sp.layer_group = group;
        sp.budget = UBATCH + 8; // the first part is kept whole, and then evicted from
        auto ctx = make(model, sp);
        CHECK(prefill(ctx.get(), begin) == 0);
        llama_snapkv_prompt prompt = llama_snapkv_default_prompt(0, rest.data(), (uint32_t) rest.size());
        CHECK(llama_snapkv_extend(ctx.get(), UBATCH, &prompt) == 0);
        CHECK(logits(ctx.get()) == expected);
        CHECK(state_of(ctx.get(), 0, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) == expected_state);

        const auto before = state_of(ctx.get(), 0);
        prompt = llama_snapkv_default_prompt(0, tokens.data() + tokens.size() - WINDOW, WINDOW);
        CHECK(llama_snapkv_extend(ctx.get(), (llama_pos) (tokens.size() - WINDOW), &prompt) == -1);
        CHECK(strstr(llama_snapkv_last_error(), "recurrent layers have gone on"));
        CHECK(state_of(ctx.get(), 0) == before);
    }
}

static void test_refusals(llama_model * model) {
    auto cp = context_params();
    cp.n_rs_seq = 2;
    CHECK(llama_snapkv_supported(model, cp, snapkv_params()) || strstr(llama_snapkv_last_error(), "n_rs_seq")); // a few models take no such number
    auto ctx = make(model);
    llama_snapkv_state state = {};
    state.size = sizeof(state);
    CHECK(!llama_snapkv_keep_state(ctx.get(), 0, true) && strstr(llama_snapkv_last_error(), "no tokens"));
    CHECK(!llama_snapkv_keep_state(ctx.get(), 2, true));
    CHECK(!llama_snapkv_get_state(ctx.get(), 0, false, 0, &state));
    CHECK(!llama_snapkv_add_state(ctx.get(), 0, false, &state));
    CHECK(prefill(ctx.get(), make_tokens(model, N, 1)) == 0);
    CHECK(llama_snapkv_get_state(ctx.get(), 0, false, 0, &state) && state.pos == (llama_pos) N);
    state.pos = N - 1;
    CHECK(!llama_snapkv_add_state(ctx.get(), 0, false, &state) && strstr(llama_snapkv_last_error(), "can go back to"));
    state.pos = N + 1;
    CHECK(!llama_snapkv_add_state(ctx.get(), 0, false, &state));
}

static std::vector<llama_pos> kept_at(llama_context * ctx, llama_seq_id seq_id = 0, bool in_vault = false) {
    std::vector<llama_pos> res;
    for (uint32_t i = 0; i < llama_snapkv_n_states(ctx, seq_id, in_vault); ++i) {
        llama_snapkv_state state = {};
        state.size = sizeof(state);
        CHECK(llama_snapkv_get_state(ctx, seq_id, in_vault, i, &state));
        res.push_back(state.pos);
    }
    return res;
}

// to the ends of turns: what is there then is what was there
static void test_go_back(llama_model * model) {
    auto ctx = make(model);
    llama_memory_t mem = llama_get_memory(ctx.get());
    CHECK(prefill(ctx.get(), make_tokens(model, N, 1)) == 0);
    const auto after_prompt = state_of(ctx.get(), 0);
    const auto prompt_logits = logits(ctx.get());
    const auto answer_logits = goes_on(ctx.get());
    const auto after_answer = state_of(ctx.get(), 0);
    CHECK(llama_snapkv_keep_state(ctx.get(), 0, true));
    const tokens_t turn = make_tokens(model, 20, 9);
    CHECK(decode(ctx.get(), turn, N + 5) == 0);
    const auto turn_logits = logits(ctx.get());
    const auto after_turn = state_of(ctx.get(), 0);
    CHECK(kept_at(ctx.get()) == (std::vector<llama_pos>{ N, N + 5 }));

    CHECK(!llama_snapkv_go_back(ctx.get(), 0, N + 4) && strstr(llama_snapkv_last_error(), "no state"));
    CHECK(state_of(ctx.get(), 0) == after_turn);
    for (int i = 0; i < 2; ++i) { // a state is still there
        CHECK(llama_snapkv_go_back(ctx.get(), 0, N + 5));
        CHECK(state_of(ctx.get(), 0) == after_answer && logits(ctx.get()) == answer_logits);
        CHECK(decode(ctx.get(), turn, N + 5) == 0);
        CHECK(state_of(ctx.get(), 0) == after_turn && logits(ctx.get()) == turn_logits);
    }

    // with a copy, which has its own place
    llama_memory_seq_cp(mem, 0, 1, -1, -1);
    CHECK(kept_at(ctx.get(), 1) == kept_at(ctx.get(), 0));
    CHECK(llama_snapkv_go_back(ctx.get(), 1, N + 5));
    CHECK(state_of(ctx.get(), 0) == after_turn);
    CHECK(decode(ctx.get(), turn, N + 5, 1) == 0 && logits(ctx.get()) == turn_logits);

    CHECK(llama_snapkv_go_back(ctx.get(), 0, N));
    CHECK(state_of(ctx.get(), 0) == after_prompt && logits(ctx.get()) == prompt_logits);
    CHECK(kept_at(ctx.get()) == (std::vector<llama_pos>{ N }));
    CHECK(goes_on(ctx.get()) == answer_logits && state_of(ctx.get(), 0) == after_answer);

    set_variable("SNAPKV_TEST_FAIL_ALLOC", "state");
    CHECK(!llama_snapkv_keep_state(ctx.get(), 0, true) && strstr(llama_snapkv_last_error(), "out of memory"));
    set_variable("SNAPKV_TEST_FAIL_ALLOC", nullptr);
    CHECK(state_of(ctx.get(), 0) == after_answer);

    CHECK(llama_memory_seq_rm(mem, 0, -1, -1) && kept_at(ctx.get()).empty());
    CHECK(kept_at(ctx.get(), 1).size() == 2);
    llama_memory_clear(mem, true);
    CHECK(kept_at(ctx.get(), 1).empty());
}

// many turns keep few states, and the newest of them
static void test_few_are_kept(llama_model * model) {
    auto ctx = make(model);
    CHECK(prefill(ctx.get(), make_tokens(model, N, 1)) == 0);
    for (int i = 0; i < 40; ++i) {
        CHECK(decode(ctx.get(), { 3 + i }, N + i) == 0 && llama_snapkv_keep_state(ctx.get(), 0, true));
    }
    const auto kept = kept_at(ctx.get());
    CHECK(kept.size() == 12 && kept.back() == N + 40 && kept[10] >= N + 35);
}

// going back over an eviction: the rows are others
static void test_evictions_end_states(llama_model * model) {
    auto ctx = make(model);
    CHECK(prefill(ctx.get(), make_tokens(model, N, 1)) == 0);
    CHECK(goes_on(ctx.get()).size() > 0 && llama_snapkv_keep_state(ctx.get(), 0, true));
    const tokens_t more = make_tokens(model, 30, 4);
    const llama_snapkv_prompt prompt = llama_snapkv_default_prompt(0, more.data(), (uint32_t) more.size());
    CHECK(llama_snapkv_extend(ctx.get(), N + 5, &prompt) == 0);
    CHECK(kept_at(ctx.get()) == (std::vector<llama_pos>{ N + 35 }));
    CHECK(!llama_snapkv_go_back(ctx.get(), 0, N + 5));
}

// tokens within an answer given again, from a state kept in time: as if they had come first then
static void test_extend_from_a_state(llama_model * model) {
    const tokens_t more = make_tokens(model, 12, 4);
    const llama_snapkv_prompt prompt = llama_snapkv_default_prompt(0, more.data(), (uint32_t) more.size());
    auto ctx = make(model);
    CHECK(prefill(ctx.get(), make_tokens(model, N, 1)) == 0);
    goes_on(ctx.get());
    CHECK(llama_snapkv_extend(ctx.get(), N + 5, &prompt) == 0);
    const auto expected = state_of(ctx.get(), 0);
    const auto expected_logits = logits(ctx.get());

    auto other = make(model);
    CHECK(prefill(other.get(), make_tokens(model, N, 1)) == 0);
    goes_on(other.get());
    CHECK(llama_snapkv_keep_state(other.get(), 0, true));
    for (size_t i = 0; i < more.size(); ++i) {
        CHECK(decode(other.get(), { more[i] }, (llama_pos) (N + 5 + i)) == 0);
    }
    CHECK(llama_snapkv_go_back(other.get(), 0, N + 5));
    CHECK(llama_snapkv_extend(other.get(), N + 5, &prompt) == 0);
    CHECK(state_of(other.get(), 0) == expected && logits(other.get()) == expected_logits);
}

static uint32_t n_cached(llama_context * ctx) {
    llama_snapkv_stats stats = {};
    stats.size = sizeof(stats);
    CHECK(llama_snapkv_get_stats(ctx, &stats));
    return stats.n_cached;
}

// last chunks have LEAST tokens or more: fewer are computed in another way
static constexpr uint32_t N_DOC = 320;
static constexpr uint32_t LEAST = 64; // tokens that are computed after the vault's

// tokens of a chunk: with the first, what comes after a document is in the chunks that it has in a prefill of all, so that everything is
// the same on every device. With the second it is not. The CPU computes a row in one way in both; devices sum in another order
static const uint32_t CHUNKS[] = { LEAST, 2 * LEAST };

static llama_snapkv_params document_params(uint32_t chunk) {
    auto sp = snapkv_params();
    sp.n_ubatch = chunk;
    return sp;
}

static tokens_t ask(const tokens_t & document, const tokens_t & question) {
    tokens_t res = document;
    res.insert(res.end(), question.begin(), question.end());
    return res;
}

// after a prefill
struct outcome {
    bytes_t state;
    row_t logits;
    row_t next; // logits after some tokens more

    static outcome of(llama_context * ctx) {
        outcome res = { state_of(ctx, 0), ::logits(ctx), {} };
        res.next = goes_on(ctx);
        return res;
    }

    bool is(const outcome & expected, uint32_t chunk) const {
        if (chunk == LEAST || !ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_GPU)) {
            return state == expected.state && logits == expected.logits && next == expected.next;
        }
        const double error = std::max(error_of(logits, expected.logits), error_of(next, expected.next));
        if (error > MAX_ERROR) {
            printf("error %g\n", error);
        }
        return error <= MAX_ERROR;
    }
};

// questions to a document, by what was kept of it: the logits, the kept rows and the states of prefills of all tokens
static void test_vault(llama_model * model, uint32_t chunk) {
    const tokens_t document = make_tokens(model, N_DOC, 1);
    // the first is short: so many tokens before the document's end are computed that it is LEAST in all
    const std::vector<std::pair<uint32_t, uint32_t>> questions = { { 10, N_DOC - LEAST }, { 64, N_DOC }, { 128, N_DOC } };
    auto prompts = [&](uint32_t i) { return i == 0 ? document : ask(document, make_tokens(model, questions[i - 1].first, 7 + questions[i - 1].first)); };
    std::vector<outcome> expected;
    auto anew = make(model, document_params(chunk));
    for (uint32_t i = 0; i <= questions.size(); ++i) {
        CHECK(prefill(anew.get(), prompts(i)) == 0);
        expected.push_back(outcome::of(anew.get()));
    }
    for (const uint32_t group : { 2u, UINT32_MAX }) { // of an odd number of layers the last is by itself
        auto sp = document_params(chunk);
        sp.layer_group = group;
        sp.vault = true;
        auto ctx = make(model, sp);
        CHECK(prefill(ctx.get(), document) == 0);
        CHECK(outcome::of(ctx.get()).is(expected[0], chunk));
        CHECK(kept_at(ctx.get(), 0, true) == (std::vector<llama_pos>{ N_DOC - 4 * LEAST, N_DOC - LEAST, N_DOC }));

        for (uint32_t i = 1; i <= questions.size(); ++i) {
            const tokens_t tokens = prompts(i);
            CHECK(prefill(ctx.get(), tokens) == 0);
            CHECK(n_cached(ctx.get()) == questions[i - 1].second);
            CHECK(outcome::of(ctx.get()).is(expected[i], chunk));
            CHECK(kept_at(ctx.get()) == (std::vector<llama_pos>{ (llama_pos) tokens.size() }));
        }

        // rows chosen anew: what followed the prompt is gone from the states, too
        const auto after_answer = state_of(ctx.get(), 0, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
        CHECK(llama_snapkv_go_back(ctx.get(), 0, N_DOC + 128));
        const auto at_prompt = state_of(ctx.get(), 0, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
        CHECK(at_prompt != after_answer);
        goes_on(ctx.get());
        std::vector<uint32_t> n_kept(llama_snapkv_n_layer(ctx.get()), 4);
        std::vector<int32_t> ids;
        for (uint32_t ic = 0; ic < n_kept.size(); ++ic) {
            for (uint32_t h = 0; h < llama_snapkv_n_head_kv(ctx.get(), ic); ++h) {
                ids.insert(ids.end(), { 1, 5, 9, 200 });
            }
        }
        CHECK(llama_snapkv_select_rows(ctx.get(), 0, n_kept.data(), ids.data()) == 0);
        CHECK(state_of(ctx.get(), 0, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) == at_prompt);

        // an aborted question takes nothing of the document along
        const tokens_t tokens = ask(document, make_tokens(model, 70, 77));
        llama_snapkv_prompt prompt = llama_snapkv_default_prompt(0, tokens.data(), (uint32_t) tokens.size());
        prompt.progress = [](uint64_t, uint64_t, void *) -> bool { return false; };
        CHECK(llama_snapkv_prefill(ctx.get(), &prompt) == 2 && is_empty(ctx.get(), 0));
        CHECK(prefill(ctx.get(), ask(document, make_tokens(model, 66, 5))) == 0 && n_cached(ctx.get()) == N_DOC);
    }
}

// a document from elsewhere: rows and states, as a file holds them
static void test_attached_document(llama_model * model, uint32_t chunk) {
    auto sp = document_params(chunk);
    const tokens_t document = make_tokens(model, N_DOC, 1);
    const tokens_t tokens = ask(document, make_tokens(model, LEAST, 2));
    auto anew = make(model, sp);
    CHECK(prefill(anew.get(), tokens) == 0);

    sp.vault = true;
    auto from = make(model, sp);
    auto to = make(model, sp);
    CHECK(prefill(from.get(), document) == 0);
    llama_snapkv_vault_segment segment = {};
    segment.size = sizeof(segment);
    CHECK(llama_snapkv_vault_n_segments(from.get(), 0) == 1 && llama_snapkv_vault_get_segment(from.get(), 0, 0, &segment));
    CHECK(llama_snapkv_vault_attach(to.get(), 0, &segment));
    llama_snapkv_state state = {};
    state.size = sizeof(state);
    for (uint32_t i = 0; i < llama_snapkv_n_states(from.get(), 0, true); ++i) {
        CHECK(llama_snapkv_get_state(from.get(), 0, true, i, &state));
        CHECK(llama_snapkv_add_state(to.get(), 0, true, &state));
    }
    CHECK(prefill(to.get(), tokens) == 0 && n_cached(to.get()) == N_DOC);
    CHECK(outcome::of(to.get()).is(outcome::of(anew.get()), chunk));

    state.n_bytes -= 1;
    CHECK(!llama_snapkv_add_state(to.get(), 0, true, &state) && strstr(llama_snapkv_last_error(), "another model"));
    llama_snapkv_vault_clear(to.get(), 0);
    CHECK(llama_snapkv_n_states(to.get(), 0, true) == 0);
    state.n_bytes += 1;
    CHECK(!llama_snapkv_add_state(to.get(), 0, true, &state));
}

template <void (*test)(llama_model *, uint32_t)> static void each_chunk(llama_model * model) {
    for (const uint32_t chunk : CHUNKS) {
        const std::string name = current;
        current += ", chunks of " + std::to_string(chunk);
        test(model, chunk);
        current = name;
    }
}

// up to the budget a prompt takes the ordinary way
static void test_short_prompt(llama_model * model) {
    const auto tokens = make_tokens(model, BUDGET, 1);
    llama_context_ptr plain(llama_init_from_model(model, context_params()));
    CHECK(decode(plain.get(), tokens, 0) == 0);
    auto ctx = make(model);
    CHECK(prefill(ctx.get(), tokens) == 0);
    CHECK(logits(ctx.get()) == logits(plain.get()));
    CHECK(goes_on(ctx.get()) == goes_on(plain.get()));
}

// guesses are looked at, and wrong ones taken back: what is left is what the same tokens in the same batches leave without them
static void test_looks(llama_model * model) {
    auto ctx = make(model);
    auto plain = make(model);
    CHECK(!llama_snapkv_begin_look(ctx.get(), 0) && strstr(llama_snapkv_last_error(), "no tokens"));
    CHECK(!llama_snapkv_begin_look(ctx.get(), 2) && llama_snapkv_take_back(ctx.get(), 2, N) == -1);
    for (auto * each : { ctx.get(), plain.get() }) {
        CHECK(prefill(each, make_tokens(model, N, 1)) == 0);
        CHECK(goes_on(each).size() > 0);
    }
    const auto before = state_of(ctx.get(), 0);
    CHECK(llama_snapkv_take_back(ctx.get(), 0, N + 5) == -1);
    CHECK(llama_snapkv_begin_look(ctx.get(), 0));
    CHECK(state_of(ctx.get(), 0) == before);
    CHECK(decode(ctx.get(), { 11, 12, 13, 14 }, N + 5) == 0);
    CHECK(llama_snapkv_take_back(ctx.get(), 0, N + 4) == -1);
    for (int i = 0; i < 2; ++i) { // it is still there
        CHECK(llama_snapkv_take_back(ctx.get(), 0, N + 7) == (llama_pos) N + 5);
        CHECK(state_of(ctx.get(), 0) == before);
        CHECK(decode(ctx.get(), { 11, 12, 15, 16, 17 }, N + 5) == 0);
    }
    CHECK(decode(plain.get(), { 11, 12, 15, 16, 17 }, N + 5) == 0);
    CHECK(state_of(ctx.get(), 0) == state_of(plain.get(), 0) && logits(ctx.get()) == logits(plain.get()));

    // each sequence has its own
    const auto after = state_of(ctx.get(), 0);
    llama_memory_seq_cp(llama_get_memory(ctx.get()), 0, 1, -1, -1);
    CHECK(llama_snapkv_take_back(ctx.get(), 1, N + 10) == -1);
    CHECK(llama_snapkv_begin_look(ctx.get(), 1));
    const auto copied = state_of(ctx.get(), 1);
    CHECK(decode(ctx.get(), { 21, 22 }, N + 10, 1) == 0);
    CHECK(llama_snapkv_take_back(ctx.get(), 1, N + 11) == (llama_pos) N + 10);
    CHECK(state_of(ctx.get(), 1) == copied && state_of(ctx.get(), 0) == after);
    CHECK(llama_snapkv_take_back(ctx.get(), 0, N + 10) == (llama_pos) N + 5);
    CHECK(state_of(ctx.get(), 0) == before && state_of(ctx.get(), 1) == copied);
    CHECK(goes_on(ctx.get(), 1) == goes_on(plain.get()));

    // rows of others, that a look knew nothing of
    const tokens_t more = make_tokens(model, 30, 4);
    const llama_snapkv_prompt prompt = llama_snapkv_default_prompt(0, more.data(), (uint32_t) more.size());
    CHECK(llama_snapkv_extend(ctx.get(), N + 5, &prompt) == 0);
    CHECK(llama_snapkv_take_back(ctx.get(), 0, N + 5) == -1);

    // other tokens in the places of those before it
    for (const bool all : { false, true }) {
        auto * mem = llama_get_memory(ctx.get());
        CHECK(prefill(ctx.get(), make_tokens(model, BUDGET, 1)) == 0);
        CHECK(llama_snapkv_begin_look(ctx.get(), 0));
        CHECK(all ? (llama_memory_clear(mem, true), true) : llama_memory_seq_rm(mem, 0, -1, -1));
        CHECK(decode(ctx.get(), make_tokens(model, BUDGET + 5, 2), 0) == 0);
        const auto other = state_of(ctx.get(), 0);
        CHECK(llama_snapkv_take_back(ctx.get(), 0, BUDGET) == -1);
        CHECK(state_of(ctx.get(), 0) == other);
    }
}

static void test_looks_without_memory(llama_model * model) {
    auto ctx = make(model);
    CHECK(prefill(ctx.get(), make_tokens(model, N, 1)) == 0);
    const auto before = state_of(ctx.get(), 0);
    set_variable("SNAPKV_TEST_FAIL_ALLOC", "looks");
    CHECK(!llama_snapkv_reserve_looks(ctx.get()) && strstr(llama_snapkv_last_error(), "out of memory"));
    CHECK(!llama_snapkv_begin_look(ctx.get(), 0) && strstr(llama_snapkv_last_error(), "out of memory"));
    set_variable("SNAPKV_TEST_FAIL_ALLOC", nullptr);
    CHECK(state_of(ctx.get(), 0) == before);
    CHECK(llama_snapkv_reserve_looks(ctx.get()) && llama_snapkv_begin_look(ctx.get(), 0));
}

static tests_t tests_of(const llama_model * model) {
    CHECK(llama_model_is_hybrid(model));
    return {
        { "no way back", test_no_way_back },
        { "copies", test_copies },
        { "failures", test_failures },
        { "extend", test_extend },
        { "refusals", test_refusals },
        { "go back", test_go_back },
        { "few are kept", test_few_are_kept },
        { "looks", test_looks },
        { "looks without memory", test_looks_without_memory },
        { "evictions end states", test_evictions_end_states },
        { "extend from a state", test_extend_from_a_state },
        { "vault", each_chunk<test_vault> },
        { "attached document", each_chunk<test_attached_document> },
        { "short prompt", test_short_prompt },
    };
}

int main(int argc, char ** argv) {
    imaginary::take_option(argc, argv);
    return run_tests(argc, argv, tests_of);
}
