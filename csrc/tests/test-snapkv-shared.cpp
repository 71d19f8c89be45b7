// The votes of Gemma's layers against float64, and where layers read the KV of another, of the queries of all of them. The queries and keys are those of
// llama_decode() without SnapKV, taken from its graph by their names.
//
//   test-snapkv-shared MODEL.gguf ...

#include "llama-cpp.h"
#include "llama-model.h"
#include "snapkv.h"
#include "test-snapkv-ops-reference.h"
#include "test-snapkv-sequences.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

static constexpr uint32_t N = 150;
static constexpr uint32_t BUDGET = 48;
static constexpr uint32_t WINDOW = 8;
static constexpr uint32_t UBATCH = 49; // the window's queries are in two chunks
static constexpr double TOLERANCE = 1e-3;

static llama_context_params context_params() {
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = 256;
    cp.n_batch = cp.n_ubatch = UBATCH;
    cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    cp.no_perf = true;
    cp.n_threads = cp.n_threads_batch = 1;
    return cp;
}

// of all tokens, [head_dim, n_head, n_tokens], by the names that the model's graph gives them
using captured_t = std::map<std::string, std::vector<float>>;

static bool capture(ggml_tensor * t, bool ask, void * data) {
    const std::string name = t->name;
    const bool wanted = name.rfind("Qcur_pos-", 0) == 0 || name.rfind("Kcur_pos-", 0) == 0;
    if (wanted && !ask) {
        auto & values = (*static_cast<captured_t *>(data))[name];
        const size_t n = values.size();
        values.resize(n + ggml_nelements(t));
        ggml_backend_tensor_get(t, values.data() + n, 0, ggml_nbytes(t));
    }
    return ask ? wanted : true;
}

static std::vector<int32_t> readers_of(const llama_model & model, int32_t il) {
    std::vector<int32_t> res = { il };
    const int32_t n_kv = model.hparams.n_layer_kv_from_start;
    for (int32_t reader = n_kv; il == n_kv - 1 && reader < (int32_t) model.hparams.n_layer(); ++reader) {
        if (!model.hparams.is_swa(reader)) {
            res.push_back(reader);
        }
    }
    return res;
}

struct expected_votes {
    ops_case shape;
    ops_reference votes;
};

// of a cached layer whose KV these layers read
static expected_votes expect(const llama_model & model, const captured_t & captured, const llama_snapkv_params & sp, const std::vector<int32_t> & readers) {
    const auto & hparams = model.hparams;
    const int32_t il = readers[0];
    ops_case c;
    c.head_dim = (int) hparams.n_embd_head_k(il);
    c.n_head_kv = (int) hparams.n_head_kv(il);
    c.g = 0;
    c.w = WINDOW;
    c.n = N;
    c.n_kept = BUDGET - WINDOW;
    c.kernel = (int) sp.kernel_size;
    c.pool = sp.pooling;
    c.reduce = sp.aggregation;
    c.own = sp.self_weight;

    ops_data data;
    data.n_cells = N;
    for (int h = 0; h < c.n_head_kv; ++h) {
        for (const int32_t reader : readers) {
            const auto & q = captured.at("Qcur_pos-" + std::to_string(reader));
            const int n_head = (int) hparams.n_head(reader);
            const int g = n_head / c.n_head_kv;
            c.g += h == 0 ? g : 0;
            for (int head = h * g; head < (h + 1) * g; ++head) {
                for (uint32_t pos = N - WINDOW; pos < N; ++pos) {
                    for (int i = 0; i < c.head_dim; ++i) {
                        // the model's scale in the place of the reference's
                        data.q.push_back(q[((size_t) pos * n_head + head) * c.head_dim + i] * hparams.f_attention_scale * std::sqrt((float) c.head_dim));
                    }
                }
            }
        }
    }
    for (const float x : captured.at("Kcur_pos-" + std::to_string(il))) {
        data.k.push_back(ops_round_f16(x));
    }
    return { c, ops_compute_reference(c, data) };
}

static void test_votes(const llama_model & model, llama_context * ctx, const captured_t & captured, const llama_snapkv_params & sp) {
    int n_shared = 0;
    for (uint32_t ic = 0; ic < llama_snapkv_n_layer(ctx); ++ic) {
        const auto readers = readers_of(model, llama_snapkv_layer_id(ctx, ic));
        const auto expected = expect(model, captured, sp, readers);
        const ops_case & c = expected.shape;
        for (int h = 0; h < c.n_head_kv; ++h) {
            std::vector<float> scores((size_t) c.m());
            std::vector<int32_t> ids((size_t) c.n_kept);
            CHECK(llama_snapkv_scores(ctx, ic, (uint32_t) h, scores.data(), (uint32_t) c.m()) == c.m());
            CHECK(llama_snapkv_kept(ctx, 0, ic, (uint32_t) h, ids.data(), (uint32_t) c.n_kept) == (uint32_t) c.n_kept);
            const double * votes = &expected.votes.votes[(size_t) h * c.n];
            CHECK(ops_error_of_votes({ votes, votes + c.m() }, scores, TOLERANCE) <= 1.0);
            CHECK(ops_error_of_ids(votes, c.m(), ids, 0, TOLERANCE) <= 1.0);

            if (readers.size() > 1) { // the comparison sees it if one layer's queries are missing
                for (const auto & fewer : { std::vector<int32_t>(readers.begin(), readers.end() - 1), std::vector<int32_t>({ readers[0] }) }) {
                    const auto other = expect(model, captured, sp, fewer);
                    const double * of_fewer = &other.votes.votes[(size_t) h * c.n];
                    CHECK(ops_error_of_votes({ of_fewer, of_fewer + c.m() }, scores, TOLERANCE) > 10.0);
                }
            }
        }
        n_shared += readers.size() > 1;
    }
    CHECK(n_shared == (model.hparams.n_layer_kv_from_start < (int32_t) model.hparams.n_layer()));
}

static void test_model(llama_model * model) {
    const auto tokens = make_tokens(model, N, 1);
    captured_t captured;
    std::vector<float> expected;
    {
        llama_context_params cp = context_params();
        cp.cb_eval = capture;
        cp.cb_eval_user_data = &captured;
        llama_context_ptr plain(llama_init_from_model(model, cp));
        for (uint32_t p = 0; p < N; p += UBATCH) {
            auto part = tokens;
            CHECK(llama_decode(plain.get(), llama_batch_get_one(part.data() + p, (int32_t) std::min(UBATCH, N - p))) == 0);
        }
        expected = logits(plain.get());
    }
    for (const llama_snapkv_ops ops : { LLAMA_SNAPKV_OPS_FUSED, LLAMA_SNAPKV_OPS_GGML }) {
        for (const uint32_t n_queries : { 0u, N }) { // with those of tokens whose layers without KV are not computed otherwise
            llama_snapkv_params sp = llama_snapkv_default_params();
            sp.budget = BUDGET;
            sp.window_size = sp.observation = WINDOW;
            sp.decode_cells = 32;
            sp.layer_group = 1;
            sp.keep_scores = true;
            sp.ops = ops;
            llama_context_ptr ctx(llama_snapkv_init_from_model(model, context_params(), sp));
            CHECK(ctx);
            llama_snapkv_prompt prompt = llama_snapkv_default_prompt(0, tokens.data(), N);
            prompt.n_queries = n_queries;
            CHECK(llama_snapkv_prefill(ctx.get(), &prompt) == 0);
            CHECK(logits(ctx.get()) == expected);
            test_votes(*model, ctx.get(), captured, sp);
        }
    }
}

static tests_t tests_of(const llama_model *) {
    return { { "votes", test_model } };
}

int main(int argc, char ** argv) {
    return run_tests(argc, argv, tests_of);
}
