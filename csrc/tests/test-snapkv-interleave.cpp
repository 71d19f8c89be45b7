// Between two chunks of a prefill other sequences of the context go on: they answer as without it, and it ends as without them. What
// is not theirs is refused.
//
//   test-snapkv-interleave MODEL.gguf ...

#include "llama-cpp.h"
#include "snapkv.h"
#include "test-snapkv-sequences.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

static constexpr uint32_t N_CTX = 256; // of a sequence
static constexpr uint32_t N_SEQS = 5;
static constexpr uint32_t N = 60;       // tokens of a short prompt
static constexpr uint32_t N_LONG = 180; // of that which is prefilled meanwhile
static constexpr uint32_t BUDGET = 64;
static constexpr uint32_t UBATCH = 16;
static constexpr uint32_t MAX_TURNS = 24; // tokens that a sequence has cells for

static constexpr llama_seq_id A = 0, D = 1, B = 2, C = 3, E = 4; // D is the long one, and its recurrent state in the others' midst

static llama_context_ptr make(llama_model * model, bool unified, bool vault = false, uint32_t n_batch = 64, uint32_t budget = BUDGET) {
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = N_CTX * N_SEQS;
    cp.n_batch = n_batch;
    cp.n_ubatch = std::min(UBATCH, n_batch);
    cp.n_seq_max = N_SEQS;
    cp.kv_unified = unified;
    cp.n_threads = cp.n_threads_batch = 1;
    llama_snapkv_params sp = llama_snapkv_default_params();
    sp.budget = budget;
    sp.window_size = 8;
    sp.decode_cells = MAX_TURNS + 8;
    sp.layer_group = 1;
    sp.vault = vault;
    llama_context_ptr ctx(llama_snapkv_init_from_model(model, cp, sp));
    CHECK(ctx);
    return ctx;
}

// the other sequences: in each turn they decode a token, all together or one by one, and in one of them B makes way for a new prompt
class others {
public:
    explicit others(llama_context * ctx) :
        ctx(ctx), model(llama_get_model(ctx)) {
        for (const llama_seq_id id : { A, B, C }) {
            const auto tokens = make_tokens(model, N + (uint32_t) id, 100 + (uint32_t) id);
            CHECK(prefill(ctx, tokens, id) == 0);
            next.push_back({ id, (llama_pos) tokens.size() });
        }
    }

    void turn() {
        if (n_turns >= MAX_TURNS) {
            return;
        }
        if (n_turns == 5) {
            CHECK(llama_memory_seq_rm(llama_get_memory(ctx), B, -1, -1));
            next.erase(next.begin() + 1);
            const auto tokens = make_tokens(model, 50, 77);
            std::vector<std::pair<llama_seq_id, llama_pos>> in;
            for (uint32_t i = 0; i < tokens.size(); ++i) {
                in.push_back({ E, (llama_pos) i });
            }
            decode(in, tokens);
            next.push_back({ E, (llama_pos) tokens.size() });
        }
        const auto tokens = make_tokens(model, (uint32_t) next.size(), 1000 + n_turns);
        if (n_turns % 3 == 2) {
            for (size_t i = 0; i < next.size(); ++i) {
                decode({ next[i] }, { tokens[i] });
            }
        } else {
            decode(next, tokens);
        }
        for (auto & [_, pos] : next) {
            pos++;
        }
        n_turns++;
    }

    std::vector<bytes_t> states() const {
        std::vector<bytes_t> res;
        for (const auto & [id, _] : next) {
            res.push_back(state_of(ctx, id));
        }
        return res;
    }

    std::vector<row_t> rows; // logits of all that was decoded
    uint32_t n_turns = 0;

private:
    void decode(const std::vector<std::pair<llama_seq_id, llama_pos>> & at, const tokens_t & tokens) {
        llama_batch batch = llama_batch_init((int32_t) at.size(), 0, 1);
        for (size_t i = 0; i < at.size(); ++i) {
            batch.token[i] = tokens[i];
            batch.pos[i] = at[i].second;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = at[i].first;
            batch.logits[i] = i + 1 == at.size() || at[i].first != at[i + 1].first;
        }
        batch.n_tokens = (int32_t) at.size();
        const int32_t rc = n_turns % 2 ? llama_decode(ctx, batch) : llama_snapkv_decode(ctx, batch);
        CHECK(rc == 0);
        for (int32_t i = 0; rc == 0 && i < batch.n_tokens; ++i) {
            if (batch.logits[i]) {
                rows.push_back(logits(ctx, i));
            }
        }
        llama_batch_free(batch);
    }

    llama_context * ctx;
    const llama_model * model;
    std::vector<std::pair<llama_seq_id, llama_pos>> next; // where each goes on
};

// moved: in the one case they have found other cells than in the other, and sums over cells have another order
static bool is_same(const others & found, const others & expected, bool moved) {
    bool res = found.rows.size() == expected.rows.size();
    for (size_t i = 0; res && moved && i < found.rows.size(); ++i) {
        res = error_of(found.rows[i], expected.rows[i]) < MAX_ERROR;
    }
    return res && (moved || (found.rows == expected.rows && found.states() == expected.states()));
}

using turn_t = std::function<bool()>;

static bool call_turn(void * data) {
    return (*(turn_t *) data)();
}

// pos0 > 0: extends
static int32_t evaluate(llama_context * ctx, const tokens_t & tokens, llama_pos pos0, const turn_t & turn) {
    auto prompt = llama_snapkv_default_prompt(D, tokens.data(), (uint32_t) tokens.size());
    if (turn) {
        prompt.on_yield = call_turn;
        prompt.yield_data = const_cast<turn_t *>(&turn);
    }
    return pos0 > 0 ? llama_snapkv_extend(ctx, pos0, &prompt) : llama_snapkv_prefill(ctx, &prompt);
}

// of D
struct outcome {
    row_t row;
    bytes_t state;
    std::vector<int32_t> kept;

    bool operator==(const outcome & o) const { return row == o.row && state == o.state && kept == o.kept; }
};

static outcome of_d(llama_context * ctx) {
    return { logits(ctx, -1), state_of(ctx, D), kept_of(ctx, D) };
}

enum way { PROMPT,
    AGAIN,
    EXTEND }; // AGAIN: most of it is in the vault

static outcome run(llama_context * ctx, way w, const turn_t & turn) {
    auto tokens = make_tokens(llama_get_model(ctx), N_LONG, 7);
    if (w == AGAIN) {
        CHECK(evaluate(ctx, tokens, 0, {}) == 0);
        const auto other = make_tokens(llama_get_model(ctx), N_LONG, 8);
        std::copy(other.begin() + 80, other.end(), tokens.begin() + 80);
    }
    llama_pos pos0 = 0;
    if (w == EXTEND) {
        pos0 = 80;
        CHECK(evaluate(ctx, { tokens.begin(), tokens.begin() + pos0 }, 0, {}) == 0);
        tokens.erase(tokens.begin(), tokens.begin() + pos0);
    }
    CHECK(evaluate(ctx, tokens, pos0, turn) == 0);
    return of_d(ctx);
}

static bool always() {
    return true;
}

static void test_as_without(llama_model * model) {
    for (const bool unified : { false, true }) {
        const bool moved = unified && llama_model_n_swa(model) > 0;
        const turn_t idle = unified ? turn_t(always) : turn_t(); // the cells that it takes in the windows of sliding-window layers depend on it
        for (const way w : { PROMPT, AGAIN, EXTEND }) {
            auto ctx = make(model, unified, w == AGAIN);
            others these(ctx.get());
            const auto found = run(ctx.get(), w, [&] {
                these.turn();
                return true;
            });
            const uint32_t n_turns = these.n_turns;
            CHECK(n_turns >= 6);

            // nothing in between: the others before it, or after it
            auto ctx_before = make(model, unified, w == AGAIN);
            others before(ctx_before.get());
            while (before.n_turns < n_turns) {
                before.turn();
            }
            CHECK(is_same(these, before, moved));
            CHECK(run(ctx_before.get(), w, idle) == found);

            auto ctx_after = make(model, unified, w == AGAIN);
            others after(ctx_after.get());
            CHECK(run(ctx_after.get(), w, idle) == found);
            while (after.n_turns < n_turns) {
                after.turn();
            }
            CHECK(is_same(these, after, moved));

            // and they go on
            these.turn();
            after.turn();
            CHECK(is_same(these, after, moved));
            CHECK(state_of(ctx.get(), D) == found.state);
        }
    }
}

// whatever ends the prefill, the others stay
static void test_abort(llama_model * model) {
    for (const bool unified : { false, true }) {
        for (const uint32_t n : { 1, 9 }) {
            auto ctx = make(model, unified);
            others these(ctx.get());
            const auto empty = state_of(ctx.get(), D);
            CHECK(evaluate(ctx.get(), make_tokens(model, N_LONG, 7), 0, [&] {
                these.turn();
                return these.n_turns < n;
            }) == 2);
            CHECK(state_of(ctx.get(), D) == empty);
            auto other = make(model, unified);
            others alone(other.get());
            while (alone.n_turns < n + 3) {
                alone.turn();
            }
            while (these.n_turns < n + 3) {
                these.turn();
            }
            CHECK(is_same(these, alone, unified)); // the cells that D had are free again
            CHECK(run(ctx.get(), PROMPT, unified ? turn_t(always) : turn_t()) == run(other.get(), PROMPT, unified ? turn_t(always) : turn_t()));
        }
    }
}

// a prompt that needs no eviction
static void test_ordinary(llama_model * model) {
    for (const bool unified : { false, true }) {
        auto ctx = make(model, unified, false, 16, 128);
        auto other = make(model, unified, false, 16, 128);
        others these(ctx.get());
        others alone(other.get());
        const auto tokens = make_tokens(model, 100, 9);
        CHECK(evaluate(ctx.get(), tokens, 0, [&] {
            if (these.n_turns < 5) {
                these.turn();
            }
            return true;
        }) == 0);
        CHECK(these.n_turns == 5);
        const auto found = of_d(ctx.get());
        CHECK(evaluate(other.get(), tokens, 0, {}) == 0);
        const auto expected = of_d(other.get());
        CHECK(unified ? error_of(found.row, expected.row) < MAX_ERROR : found == expected);
        while (alone.n_turns < 5) {
            alone.turn();
        }
        CHECK(is_same(these, alone, unified && llama_model_n_swa(model) > 0));
    }
}

#define REFUSED(x)                                                                 \
    do {                                                                           \
        CHECK(!(x));                                                               \
        CHECK(strstr(llama_snapkv_last_error(), "sequence 1 is being prefilled")); \
        llama_snapkv_set_params(nullptr, {}); /* another error */                  \
    } while (0)

static int32_t decode_one(llama_context * ctx, llama_seq_id seq_id, llama_pos pos, int32_t (*function)(llama_context *, llama_batch)) {
    llama_batch batch = llama_batch_init(1, 0, 1);
    batch.n_tokens = 1;
    batch.token[0] = 1;
    batch.pos[0] = pos;
    batch.n_seq_id[0] = 1;
    batch.seq_id[0][0] = seq_id;
    batch.logits[0] = true;
    const int32_t rc = function(ctx, batch);
    llama_batch_free(batch);
    return rc;
}

// within a callback; state: of A
static void check_refusals(llama_context * ctx, const bytes_t & state, bool others_too) {
    const auto memory = llama_get_memory(ctx);
    const auto tokens = make_tokens(llama_get_model(ctx), N, 3);
    const auto prompt = llama_snapkv_default_prompt(others_too ? A : E, tokens.data(), N);
    const llama_seq_id seq_id = others_too ? A : D;
    const llama_pos end = llama_memory_seq_pos_max(memory, A) + 1;
    bytes_t data(1 << 20);

    REFUSED(decode_one(ctx, seq_id, end, llama_decode) == 0);
    REFUSED(decode_one(ctx, seq_id, end, llama_snapkv_decode) == 0);
    REFUSED(llama_snapkv_prefill(ctx, &prompt) == 0);
    REFUSED(llama_snapkv_extend(ctx, end, &prompt) == 0);
    REFUSED(llama_snapkv_select_rows(ctx, D, nullptr, nullptr) == 0);
    REFUSED(llama_snapkv_set_params(ctx, llama_snapkv_default_params()));
    REFUSED(llama_memory_seq_rm(memory, seq_id, -1, -1));
    REFUSED(llama_memory_seq_rm(memory, -1, -1, -1));
    REFUSED(llama_state_seq_get_size(ctx, seq_id));
    REFUSED(llama_state_seq_get_data(ctx, data.data(), data.size(), seq_id));
    REFUSED(llama_state_seq_set_data(ctx, state.data(), state.size(), seq_id));
    REFUSED(llama_state_get_size(ctx));
    REFUSED(llama_state_get_data(ctx, data.data(), data.size()));
    REFUSED((llama_snapkv_vault_clear(ctx, seq_id), false));
    const auto pos_a = llama_memory_seq_pos_max(memory, A);
    REFUSED((llama_memory_clear(memory, true), false));
    REFUSED((llama_memory_seq_keep(memory, A), false));
    REFUSED((llama_memory_seq_cp(memory, A, D, -1, -1), false));
    REFUSED((llama_memory_seq_add(memory, seq_id, 0, -1, 1), false));
    REFUSED((llama_memory_seq_div(memory, seq_id, 0, -1, 2), false));
    REFUSED((llama_free(ctx), false));
    CHECK(pos_a >= 0 && llama_memory_seq_pos_max(memory, A) == pos_a);
    if (llama_model_is_hybrid(llama_get_model(ctx))) {
        REFUSED(llama_snapkv_keep_state(ctx, seq_id, false));
        REFUSED(llama_snapkv_begin_look(ctx, seq_id));
        REFUSED(llama_snapkv_take_back(ctx, seq_id, 1) >= 0);
        REFUSED(llama_snapkv_go_back(ctx, seq_id, 5));
    }
}

static void test_refusals(llama_model * model) {
    for (const bool unified : { false, true }) {
        auto ctx = make(model, unified, true);
        others these(ctx.get());
        const auto states = these.states();
        bytes_t saved(llama_state_seq_get_size(ctx.get(), A));
        CHECK(llama_state_seq_get_data(ctx.get(), saved.data(), saved.size(), A) == saved.size());
        const auto expected = run(ctx.get(), AGAIN, always); // so that there is a vault
        llama_snapkv_vault_clear(ctx.get(), D);
        run(ctx.get(), PROMPT, always);
        bool once = false;
        const auto found = run(ctx.get(), AGAIN, [&] {
            if (!once) {
                once = true;
                check_refusals(ctx.get(), saved, false);
            }
            return true;
        });
        CHECK(once && found == expected && these.states() == states);

        // in the middle of a computation, or of what is not said to be between two chunks
        static const bytes_t * state; // null: they were checked
        state = &saved;
        const auto tokens = make_tokens(model, N_LONG, 7);
        auto prompt = llama_snapkv_default_prompt(D, tokens.data(), N_LONG);
        prompt.progress = [](uint64_t, uint64_t, void * data) {
            if (state) {
                check_refusals((llama_context *) data, *state, true);
                state = nullptr;
            }
            return true;
        };
        prompt.progress_data = ctx.get();
        CHECK(llama_snapkv_prefill(ctx.get(), &prompt) == 0);
        CHECK(!state && these.states() == states);
        these.turn(); // nothing is refused any more
    }
}

static tests_t tests_of(const llama_model *) {
    return {
        { "as without", test_as_without },
        { "abort", test_abort },
        { "ordinary", test_ordinary },
        { "refusals", test_refusals },
    };
}

int main(int argc, char ** argv) {
    return run_tests(argc, argv, tests_of);
}
