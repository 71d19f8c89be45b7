// Many sequences in one context, more than a ubatch has tokens: each, compacted on its own, answers as it would alone, whether it is
// decoded on its own or together with the others, and nothing of what a sequence held is left for the next one in its place.
//
//   test-snapkv-parallel MODEL.gguf ...

#include "llama-cpp.h"
#include "snapkv.h"
#include "state/context.h"
#include "test-snapkv-sequences.h"

#include "llama-memory-recurrent.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

static constexpr uint32_t N_CTX = 256; // of a sequence
static constexpr uint32_t N = 60;
static constexpr uint32_t BUDGET = 32;
static constexpr uint32_t WINDOW = 8;
static constexpr uint32_t UBATCH = 32;
static constexpr uint32_t N_ANSWER = 3;

static llama_context_params context_params(uint32_t n_seq_max, bool unified) {
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = N_CTX * n_seq_max;
    cp.n_batch = 64;
    cp.n_ubatch = UBATCH;
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
    sp.decode_cells = 16;
    sp.layer_group = 1;
    return sp;
}

static llama_context_ptr make(llama_model * model, uint32_t n_seq_max = 1, bool unified = false) {
    llama_context_ptr ctx(llama_snapkv_init_from_model(model, context_params(n_seq_max, unified), snapkv_params()));
    CHECK(ctx);
    return ctx;
}

struct conversation {
    llama_seq_id seq_id;
    tokens_t prompt;
    tokens_t answer; // [N_ANSWER], whatever the model says
};

// of sequences 0, stride, 2*stride ... below n, of different lengths; kind: what is talked about
static std::vector<conversation> make_conversations(const llama_model * model, uint32_t n, uint32_t kind, uint32_t stride = 1) {
    std::vector<conversation> res;
    for (uint32_t i = 0; i < n; i += stride) {
        res.push_back({ (llama_seq_id) i, make_tokens(model, N + i % 7, 300 * kind + i), make_tokens(model, N_ANSWER, 300 * kind + i + 500) });
    }
    return res;
}

// what came of a conversation
struct outcome {
    std::vector<row_t> rows; // logits after the prompt, and after each token of the answer
    bytes_t state;           // K, V and states of recurrent layers
    std::vector<int32_t> kept;

    bool operator==(const outcome & o) const { return rows == o.rows && state == o.state && kept == o.kept; }
};

// one batch: token number step of each of these answers
static void answer(llama_context * ctx, const std::vector<conversation> & all, const std::vector<size_t> & which, uint32_t step, std::vector<outcome> & outcomes) {
    llama_batch batch = llama_batch_init((int32_t) which.size(), 0, 1);
    for (const size_t k : which) {
        const int32_t i = batch.n_tokens++;
        batch.token[i] = all[k].answer[step];
        batch.pos[i] = (llama_pos) (all[k].prompt.size() + step);
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = all[k].seq_id;
        batch.logits[i] = true;
    }
    CHECK(llama_decode(ctx, batch) == 0);
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        outcomes[which[i]].rows.push_back(logits(ctx, i));
    }
    llama_batch_free(batch);
}

// prompts one after the other; then of all answers the first tokens each on its own, the others together
static std::vector<outcome> run(llama_context * ctx, const std::vector<conversation> & all) {
    std::vector<outcome> res(all.size());
    std::vector<size_t> which;
    for (size_t k = 0; k < all.size(); ++k) {
        CHECK(prefill(ctx, all[k].prompt, all[k].seq_id) == 0);
        res[k].rows.push_back(logits(ctx, -1));
        res[k].kept = kept_of(ctx, all[k].seq_id);
        which.push_back(k);
    }
    for (const size_t k : which) {
        answer(ctx, all, { k }, 0, res);
    }
    answer(ctx, all, which, 1, res);
    std::reverse(which.begin(), which.end());
    answer(ctx, all, which, 2, res);
    for (size_t k = 0; k < all.size(); ++k) {
        res[k].state = state_of(ctx, all[k].seq_id);
    }
    return res;
}

// all of the sequence is gone: what is left is that of one which never held a token
static void remove(llama_context * ctx, llama_context * empty, llama_seq_id seq_id) {
    CHECK(llama_memory_seq_rm(llama_get_memory(ctx), seq_id, -1, -1));
    CHECK(state_of(ctx, seq_id) == state_of(empty, seq_id));
    CHECK(kept_of(ctx, seq_id).empty());
    CHECK(llama_snapkv_n_states(ctx, seq_id, false) == 0);
    llama_snapkv_seq_info info = {};
    info.size = sizeof(info);
    CHECK(llama_snapkv_get_seq_info(ctx, seq_id, &info) && !info.compacted && info.n_kept == 0 && info.n_prompt == 0);
}

static void test_as_alone(llama_model * model) {
    auto single = make(model);
    std::map<llama_seq_id, outcome> alone;
    double worst = 0.0;
    double least = 1.0; // of another's
    for (const uint32_t n_seqs : { 9, 16, 33, 64 }) {
        for (const bool unified : { false, true }) {
            auto ctx = make(model, n_seqs, unified);
            // graphs of many layers take long to make
            const auto all = make_conversations(model, n_seqs, 0, n_seqs > 16 && llama_model_n_layer(model) > 4 ? 3 : 1);
            const auto found = run(ctx.get(), all);
            for (size_t k = 0; k < all.size(); ++k) {
                if (alone.count(all[k].seq_id) == 0) {
                    alone[all[k].seq_id] = run(single.get(), { { 0, all[k].prompt, all[k].answer } })[0];
                }
                const outcome & expected = alone[all[k].seq_id];
                const outcome & other = found[(k + 1) % all.size()];
                CHECK(found[k].rows.size() == 1 + N_ANSWER && expected.rows.size() == 1 + N_ANSWER);
                // a prefill computes in memory of its own, except the windows of sliding-window layers
                CHECK((unified && llama_model_n_swa(model) > 0) || (found[k].rows[0] == expected.rows[0] && found[k].kept == expected.kept));
                // in a cache that all share its rows lie elsewhere
                CHECK(unified || found[k].rows[1] == expected.rows[1]);
                for (uint32_t i = 0; i < found[k].rows.size(); ++i) {
                    worst = std::max(worst, error_of(found[k].rows[i], expected.rows[i]));
                    least = std::min(least, error_of(other.rows[i], expected.rows[i]));
                }
            }
            CHECK(prefill(ctx.get(), all[0].prompt, (llama_seq_id) n_seqs) < 0);
        }
    }
    printf("%s: error together %.2g, of another sequence's logits %.2g\n", current.c_str(), worst, least);
    CHECK(worst <= MAX_ERROR);
    CHECK(least > 0.1);
}

// as where states of recurrent layers have overflowed
static void poison(llama_context * ctx) {
    const llama_memory_recurrent * recr = llama_snapkv_memory_of(*ctx).recr;
    for (const auto * tensors : { recr ? &recr->r_l : nullptr, recr ? &recr->s_l : nullptr }) {
        for (size_t il = 0; tensors && il < tensors->size(); ++il) {
            if (ggml_tensor * t = (*tensors)[il]) {
                const std::vector<float> nans(ggml_nelements(t), NAN);
                ggml_backend_tensor_set(t, nans.data(), 0, ggml_nbytes(t));
            }
        }
    }
}

// equal batches are computed alike: no difference at all
static void test_nothing_is_left(llama_model * model) {
    static constexpr uint32_t N_SEQS = 9;
    auto all = make_conversations(model, N_SEQS, 0);
    all[3].prompt.resize(BUDGET - 1); // takes the ordinary way
    const auto secrets = make_conversations(model, N_SEQS, 1);
    for (const bool unified : { false, true }) {
        auto empty = make(model, N_SEQS, unified);
        auto fresh = make(model, N_SEQS, unified);
        const auto expected = run(fresh.get(), all);

        // after other conversations
        auto used = make(model, N_SEQS, unified);
        run(used.get(), secrets);
        poison(used.get());
        for (uint32_t k = 0; k < N_SEQS; ++k) {
            if (unified || k % 2 == 0) { // else the prefill does it
                remove(used.get(), empty.get(), (llama_seq_id) k);
            }
        }
        CHECK(run(used.get(), all) == expected);

        // beside other ones
        auto mixed = secrets;
        mixed[N_SEQS / 2] = all[N_SEQS / 2];
        for (uint32_t k = 0; k < N_SEQS; ++k) {
            remove(used.get(), empty.get(), (llama_seq_id) k);
        }
        poison(used.get());
        const auto beside = run(used.get(), mixed);
        CHECK(beside[N_SEQS / 2] == expected[N_SEQS / 2]);
        CHECK(!(beside[0] == expected[0]));
    }
}

static bool refused(llama_model * model, const llama_context_params & cp, const char * reason) {
    const llama_context_ptr ctx(llama_snapkv_init_from_model(model, cp, snapkv_params()));
    return !ctx && strstr(llama_snapkv_last_error(), reason);
}

// where llama.cpp would end the process
static void test_refusals(llama_model * model) {
    auto cp = context_params(65, false);
    CHECK(refused(model, cp, "n_batch 64 is less than n_seq_max 65"));
    cp = context_params(16, false);
    cp.n_ctx = 10; // and no batch has more tokens
    CHECK(refused(model, cp, "n_ctx 10 is less than n_seq_max 16"));
    cp = context_params(16, false);
    cp.n_outputs_max = 9;
    CHECK(refused(model, cp, "n_outputs_max 9 is less"));
    cp = context_params((uint32_t) llama_max_parallel_sequences() + 1, false);
    CHECK(refused(model, cp, "n_seq_max 257 is more"));

    // a context smaller than its sequences are made: cells follow what they can hold
    cp = context_params(9, false);
    cp.n_ctx = 300;
    auto sp = snapkv_params();
    sp.budget = N_CTX - 8;
    llama_context_ptr ctx(llama_snapkv_init_from_model(model, cp, sp));
    CHECK(ctx && llama_n_ctx_seq(ctx.get()) == N_CTX && prefill(ctx.get(), make_tokens(model, N_CTX, 1), 8) == 0);
}

// models of which llama.cpp wants ubatches that all sequences fill
static void test_multiples(llama_model * model) {
    for (const uint32_t n_ubatch : { 0u, 64u, 512u }) { // no batch has more than 64 tokens, and so no ubatch
        auto cp = context_params(9, false);
        cp.n_ubatch = n_ubatch;
        CHECK(refused(model, cp, "a ubatch has 64 tokens"));
        cp = context_params(16, false);
        cp.n_ubatch = n_ubatch;
        llama_context_ptr ctx(llama_snapkv_init_from_model(model, cp, snapkv_params()));
        CHECK(ctx && run(ctx.get(), make_conversations(model, 16, 0)).size() == 16);
    }
}

static tests_t tests_of(const llama_model * model) {
    char arch[64] = "";
    llama_model_meta_val_str(model, "general.architecture", arch, sizeof(arch));
    if (strcmp(arch, "kimi-linear") == 0 || strcmp(arch, "minimax-01") == 0) {
        return { { "multiples", test_multiples } };
    }
    return {
        { "as alone", test_as_alone },
        { "nothing is left", test_nothing_is_left },
        { "refusals", test_refusals },
    };
}

int main(int argc, char ** argv) {
    return run_tests(argc, argv, tests_of);
}
