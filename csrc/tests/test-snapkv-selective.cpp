// Selective prefill. With all rows selected it is the exact one, bit for bit, in all that it leaves. With some of them the later layers
// compute what a model of these layers alone computes of the hidden states of these rows at their positions, with llama_decode().
//
//   test-snapkv-selective MODEL.gguf

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-cpp.h"
#include "llama-kv-cache-iswa.h"
#include "llama-model.h"
#include "snapkv.h"
#include "test-snapkv-sequences.h"
#include "upstream/access.h"

#include "ggml-backend.h"
#include "gguf.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

using access_t = llama_snapkv_access;

static constexpr uint32_t N = 600;
static constexpr uint32_t UBATCH = 96;
static constexpr uint32_t WINDOW = 8;
static constexpr uint32_t BUDGET = 48;
static constexpr uint32_t SELECTED = 256;

static llama_context_params context_params(ggml_type type = GGML_TYPE_F16) {
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = 1024;
    cp.n_batch = N;
    cp.n_ubatch = UBATCH;
    cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    cp.type_k = cp.type_v = type;
    cp.no_perf = true;
    cp.n_threads = cp.n_threads_batch = 1;
    return cp;
}

static llama_snapkv_params snapkv_params() {
    llama_snapkv_params sp = llama_snapkv_default_params();
    sp.budget = BUDGET;
    sp.window_size = WINDOW;
    sp.decode_cells = 64;
    sp.keep_scores = true;
    return sp;
}

static llama_snapkv_params selective_params(float share, float depth) {
    llama_snapkv_params sp = snapkv_params();
    sp.prefill = LLAMA_SNAPKV_PREFILL_SELECTIVE;
    sp.select_share = share;
    sp.select_min = 1;
    sp.select_depth = depth;
    sp.select_settled = 0.0f;
    return sp;
}

// what a prefill leaves
struct outcome {
    std::vector<float> logits, next; // of the prompt, and of tokens after it
    std::vector<std::vector<int32_t>> kept;
    std::vector<int32_t> selected;
    llama_snapkv_stats stats = {};
};

static outcome outcome_of(llama_context * ctx, const tokens_t & tokens) {
    outcome res;
    CHECK(prefill(ctx, tokens) == 0);
    res.logits = logits(ctx);
    for (uint32_t ic = 0; ic < llama_snapkv_n_layer(ctx); ++ic) {
        for (uint32_t h = 0; h < llama_snapkv_n_head_kv(ctx, ic); ++h) {
            res.kept.emplace_back(llama_snapkv_kept(ctx, 0, ic, h, nullptr, 0));
            llama_snapkv_kept(ctx, 0, ic, h, res.kept.back().data(), res.kept.back().size());
        }
    }
    res.selected.resize(llama_snapkv_selected(ctx, nullptr, 0));
    llama_snapkv_selected(ctx, res.selected.data(), res.selected.size());
    res.stats.size = sizeof(res.stats);
    CHECK(llama_snapkv_get_stats(ctx, &res.stats));
    for (llama_token next : { tokens[0], tokens[1] }) {
        CHECK(llama_decode(ctx, llama_batch_get_one(&next, 1)) == 0);
    }
    res.next = logits(ctx);
    return res;
}

static llama_context_ptr make(llama_model * model, const llama_context_params & cp, const llama_snapkv_params & sp) {
    llama_context_ptr ctx(llama_snapkv_init_from_model(model, cp, sp));
    if (!ctx) {
        printf("%s: %s\n", current.c_str(), llama_snapkv_last_error());
        n_failed++;
        exit(1);
    }
    return ctx;
}

static outcome run(llama_model * model, const llama_snapkv_params & sp, ggml_type type = GGML_TYPE_F16) {
    const auto ctx = make(model, context_params(type), sp);
    return outcome_of(ctx.get(), make_tokens(model, N, 1));
}

// with all rows selected, and with a selection that the votes never settle enough for
static void test_exact(llama_model * model) {
    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0 }) {
        const outcome exact = run(model, snapkv_params(), type);
        CHECK(exact.selected.empty() && exact.stats.n_selected == 0 && exact.stats.layer_work == 1.0);

        const outcome all = run(model, selective_params(1.0f, 0.0f), type);
        CHECK(all.selected.size() == N && all.stats.n_selected == N && all.stats.layer_work == 1.0);
        CHECK(all.logits == exact.logits);
        CHECK(all.kept == exact.kept);
        CHECK(all.next == exact.next);

        llama_snapkv_params sp = selective_params(0.1f, 0.0f);
        sp.select_settled = 1.0f;
        const outcome unsettled = run(model, sp, type);
        CHECK(unsettled.selected.empty() && unsettled.stats.layer_work == 1.0);
        CHECK(unsettled.logits == exact.logits && unsettled.kept == exact.kept && unsettled.next == exact.next);
    }
}

// the layers from il0 on as a model of its own
static llama_model_ptr later_layers(llama_model * model, const std::string & path, uint32_t il0) {
    ggml_context * data = nullptr;
    const gguf_context_ptr in(gguf_init_from_file(path.c_str(), { false, &data }));
    const ggml_context_ptr owner(data);
    const gguf_context_ptr out(gguf_init_empty());
    gguf_set_kv(out.get(), in.get());
    char arch[64] = "";
    llama_model_meta_val_str(model, "general.architecture", arch, sizeof(arch));
    const uint32_t n_layer = llama_model_n_layer(model);
    gguf_set_val_u32(out.get(), (std::string(arch) + ".block_count").c_str(), n_layer - il0);
    for (int64_t i = 0; i < gguf_get_n_kv(in.get()); ++i) { // a value for each layer
        const bool is_array = gguf_get_kv_type(in.get(), i) == GGUF_TYPE_ARRAY && gguf_get_arr_n(in.get(), i) == n_layer;
        const auto type = is_array ? gguf_get_arr_type(in.get(), i) : GGUF_TYPE_STRING;
        if (type != GGUF_TYPE_STRING) {
            const size_t size = type == GGUF_TYPE_BOOL ? 1 : 4;
            gguf_set_arr_data(out.get(), gguf_get_key(in.get(), i), type, (const char *) gguf_get_arr_data(in.get(), i) + il0 * size, n_layer - il0);
        }
    }
    for (int64_t i = 0; i < gguf_get_n_tensors(in.get()); ++i) {
        ggml_tensor * t = ggml_get_tensor(data, gguf_get_tensor_name(in.get(), i));
        uint32_t il = 0;
        char rest[64] = "";
        if (sscanf(t->name, "blk.%u.%63s", &il, rest) == 2) {
            if (il < il0) {
                continue;
            }
            ggml_format_name(t, "blk.%u.%s", il - il0, rest);
        }
        gguf_add_tensor(out.get(), t);
    }
    const std::string name = (std::filesystem::temp_directory_path() / ("snapkv-later-" + std::to_string(std::random_device()()) + ".gguf")).string();
    CHECK(gguf_write_to_file(out.get(), name.c_str(), false));
    llama_model_params mp = llama_model_default_params();
    mp.load_mode = LLAMA_LOAD_MODE_NONE; // its file is removed
    llama_model_ptr res(llama_model_load_from_file(name.c_str(), mp));
    std::remove(name.c_str());
    CHECK(res);
    return res;
}

struct captured {
    std::string name;
    std::vector<float> values;
};

static bool capture(ggml_tensor * t, bool ask, void * data) {
    auto & wanted = *static_cast<captured *>(data);
    if (wanted.name != t->name) {
        return !ask;
    }
    if (!ask) {
        const size_t n = wanted.values.size();
        wanted.values.resize(n + ggml_nelements(t));
        ggml_backend_tensor_get(t, wanted.values.data() + n, 0, ggml_nbytes(t));
    }
    return true;
}

// rows of K and V that sliding-window layers hold of a position
static std::vector<uint8_t> swa_row(llama_context * ctx, uint32_t i_layer, llama_pos pos) {
    auto & swa = *dynamic_cast<llama_kv_cache_iswa *>(ctx->get_memory())->get_swa();
    const auto & cells = swa.get_cells(0);
    std::vector<uint8_t> res;
    for (uint32_t cell = 0; cell < cells.size(); ++cell) {
        if (!cells.is_empty(cell) && cells.seq_has(cell, 0) && cells.pos_get(cell) == pos) {
            for (const ggml_tensor * t : access_t::tensors(access_t::layers(swa)[i_layer], 0)) {
                const size_t n = res.size();
                res.resize(n + t->nb[1]);
                ggml_backend_tensor_get(t, res.data() + n, cell * t->nb[1], t->nb[1]);
            }
        }
    }
    return res;
}

// logits of the last of some hidden states [n_embd] at their positions: as llama_decode(), which takes no gaps between positions
static std::vector<float> decode_rows(llama_context * ctx, const std::vector<float> & hidden, const std::vector<int32_t> & rows) {
    const llama_model & model = ctx->get_model();
    const size_t n_embd = llama_model_n_embd(&model);
    llama_batch_ext batch(rows.size(), n_embd, n_embd, 1, nullptr, model.vocab.n_tokens(), 1);
    for (size_t i = 0; i < rows.size(); ++i) {
        llama_batch_ext::token token;
        token.has_embd = true;
        token.embd_off = i * n_embd;
        token.output = i + 1 == rows.size();
        token.seq_ids = { 0 };
        token.pos = { (llama_pos) i, 0, 0, 0 };
        batch.tokens.push_back(token);
        batch.embd.insert(batch.embd.end(), hidden.begin() + rows[i] * n_embd, hidden.begin() + (rows[i] + 1) * n_embd);
    }
    batch.n_embd = n_embd;
    llama_batch_allocr allocr(1);
    CHECK(allocr.init(batch, model.vocab, false));
    std::vector<llama_ubatch> ubatches;
    for (size_t row = 0; row < rows.size(); row += ubatches.back().n_tokens) {
        ubatches.push_back(allocr.split_simple(UBATCH));
        for (uint32_t i = 0; i < ubatches.back().n_tokens; ++i) {
            ubatches.back().pos[i] = rows[row + i];
        }
    }
    llama_memory_context_ptr mctx;
    if (auto * iswa = dynamic_cast<llama_kv_cache_iswa *>(ctx->get_memory())) {
        mctx = std::make_unique<llama_kv_cache_iswa_context>(iswa, iswa->get_base()->prepare(ubatches), iswa->get_swa()->prepare(ubatches), ubatches);
    } else {
        auto * kv = dynamic_cast<llama_kv_cache *>(ctx->get_memory());
        mctx = std::make_unique<llama_kv_cache_context>(kv, kv->prepare(ubatches), ubatches);
    }
    std::vector<float> logits(model.vocab.n_tokens());
    for (size_t i = 0; i < ubatches.size(); ++i) {
        access_t::n_outputs(*ctx) = i + 1 == ubatches.size();
        ggml_status status = GGML_STATUS_SUCCESS;
        const llm_graph_result * res = ctx->process_ubatch(ubatches[i], LLM_GRAPH_TYPE_DEFAULT, mctx.get(), status);
        CHECK(res && status == GGML_STATUS_SUCCESS);
        mctx->next();
        if (i + 1 == ubatches.size()) {
            ctx->synchronize();
            ggml_backend_tensor_get(res->t_logits, logits.data(), 0, logits.size() * sizeof(float));
        }
    }
    return logits;
}

static std::string model_path; // of the model that is tested

static void test_later_layers(llama_model * model) {
    const uint32_t n_layer = llama_model_n_layer(model);
    const uint32_t n_swa = llama_model_n_swa(model);
    const uint32_t n = n_swa > 0 ? n_swa + 400 : N;
    const tokens_t tokens = make_tokens(model, n, 1);
    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0 }) {
        llama_context_params cp = context_params(type);
        cp.n_batch = n;
        llama_snapkv_params sp = selective_params((float) SELECTED / n, 0.3f);
        const auto ctx = make(model, cp, sp);
        CHECK(prefill(ctx.get(), tokens) == 0);
        const auto of_prompt = logits(ctx.get());
        std::vector<int32_t> selected(llama_snapkv_selected(ctx.get(), nullptr, 0));
        llama_snapkv_selected(ctx.get(), selected.data(), selected.size());
        llama_snapkv_stats stats = {};
        stats.size = sizeof(stats);
        CHECK(llama_snapkv_get_stats(ctx.get(), &stats));
        const uint32_t il0 = stats.n_layer_all;
        CHECK(il0 > 0 && il0 < n_layer && selected.size() == stats.n_selected && selected.size() < n);

        // the whole model without SnapKV, and from its hidden states the later layers
        captured hidden = { "l_out-" + std::to_string(il0 - 1), {} };
        cp.cb_eval = capture;
        cp.cb_eval_user_data = &hidden;
        const llama_context_ptr whole(llama_init_from_model(model, cp));
        llama_batch all = llama_batch_get_one(const_cast<llama_token *>(tokens.data()), n);
        CHECK(llama_decode(whole.get(), all) == 0);
        const size_t n_embd = llama_model_n_embd(model);
        CHECK(hidden.values.size() == n * n_embd);

        cp.cb_eval = nullptr;
        const llama_model_ptr later = later_layers(model, model_path, il0);
        const llama_context_ptr half(llama_init_from_model(later.get(), cp));
        CHECK(of_prompt == decode_rows(half.get(), hidden.values, selected));

        // sliding-window layers hold the last rows of either part
        for (llama_pos pos = (llama_pos) n - (llama_pos) n_swa; n_swa > 0 && pos < (llama_pos) n; ++pos) {
            const auto & layers = access_t::layers(*dynamic_cast<llama_kv_cache_iswa *>(ctx->get_memory())->get_swa());
            uint32_t n_before = 0;
            for (uint32_t i = 0; i < layers.size(); ++i) {
                const bool before = layers[i].il < il0;
                n_before += before;
                const auto row = swa_row(ctx.get(), i, pos);
                if (row.empty() || row != (before ? swa_row(whole.get(), i, pos) : swa_row(half.get(), i - n_before, pos))) {
                    printf("%s: layer %u, position %d\n", current.c_str(), layers[i].il, pos);
                    n_failed++;
                    return;
                }
            }
        }
    }
}

// what goes on, whatever G, ops and the place of the hidden state
static void test_rows(llama_model * model) {
    const float share = (float) SELECTED / N;
    const outcome first = run(model, selective_params(share, 0.0f));
    const auto & rows = first.selected;
    CHECK(rows.size() >= SELECTED && rows.size() % 8 == 0);
    CHECK(std::is_sorted(rows.begin(), rows.end()) && rows.front() == 0 && rows.back() == N - 1);
    for (size_t i = 1; i < rows.size(); ++i) {
        CHECK(rows[i] > rows[i - 1] && (rows[i] == rows[i - 1] + 1 || rows[i] % 8 == 0)); // whole runs
    }
    uint32_t row = 0;
    const auto ctx = make(model, context_params(), selective_params(share, 0.0f));
    for (uint32_t ic = 0; ic < llama_snapkv_n_layer(ctx.get()); ++ic) {
        const bool later = llama_snapkv_layer_id(ctx.get(), ic) >= (int32_t) first.stats.n_layer_all;
        for (uint32_t h = 0; h < llama_snapkv_n_head_kv(ctx.get(), ic); ++h, ++row) {
            CHECK(first.kept[row].size() == BUDGET - WINDOW);
            CHECK(!later || std::includes(rows.begin(), rows.end(), first.kept[row].begin(), first.kept[row].end()));
            CHECK(std::is_sorted(first.kept[row].begin(), first.kept[row].end()));
        }
    }

    for (const uint32_t group : { 1u, 2u, 3u }) {
        for (const auto ops : { LLAMA_SNAPKV_OPS_AUTO, LLAMA_SNAPKV_OPS_GGML }) {
            llama_snapkv_params sp = selective_params(share, 0.5f);
            sp.layer_group = 1;
            const outcome expected = run(model, sp);
            sp.layer_group = group;
            sp.ops = ops;
            if (!llama_snapkv_supported(model, context_params(), sp)) {
                CHECK(group >= llama_snapkv_n_layer(ctx.get()));
                continue;
            }
            const outcome other = run(model, sp);
            if (other.stats.n_layer_all == expected.stats.n_layer_all) {
                CHECK(other.selected == expected.selected && other.logits == expected.logits && other.kept == expected.kept && other.next == expected.next);
            }
        }
    }
}

// rows that stay whatever the votes say; scores of all positions; again with another prompt, and after one that is not selective
static void test_prompts(llama_model * model) {
    const tokens_t tokens = make_tokens(model, N, 1);
    const auto ctx = make(model, context_params(), selective_params(0.2f, 0.0f));
    llama_snapkv_prompt prompt = llama_snapkv_default_prompt(0, tokens.data(), N);
    const llama_snapkv_span spans[] = { { 100, 110 }, { 201, 202 }, { 900, 950 } };
    prompt.protected_spans = spans;
    prompt.n_protected = 3;
    CHECK(llama_snapkv_prefill(ctx.get(), &prompt) == 0);
    const uint32_t n_layer = llama_snapkv_n_layer(ctx.get());
    for (uint32_t ic = 0; ic < n_layer; ++ic) {
        std::vector<int32_t> kept(BUDGET - WINDOW);
        llama_snapkv_kept(ctx.get(), 0, ic, 0, kept.data(), kept.size());
        for (const int32_t pos : { 100, 109, 201 }) {
            CHECK(std::count(kept.begin(), kept.end(), pos) == 1);
        }
        CHECK(llama_snapkv_scores(ctx.get(), ic, 0, nullptr, 0) == N - WINDOW);
    }
    std::vector<int32_t> selected(llama_snapkv_selected(ctx.get(), nullptr, 0));
    llama_snapkv_selected(ctx.get(), selected.data(), selected.size());
    std::vector<float> scores(N - WINDOW);
    llama_snapkv_scores(ctx.get(), n_layer - 1, 0, scores.data(), scores.size());
    for (int32_t pos = 0; pos < (int32_t) scores.size(); ++pos) {
        CHECK(std::binary_search(selected.begin(), selected.end(), pos) || scores[pos] == 0.0f);
    }

    const outcome again = outcome_of(ctx.get(), make_tokens(model, 500, 7));
    const auto fresh = make(model, context_params(), selective_params(0.2f, 0.0f));
    const outcome alone = outcome_of(fresh.get(), make_tokens(model, 500, 7));
    CHECK(again.logits == alone.logits && again.kept == alone.kept && again.next == alone.next);

    CHECK(llama_snapkv_set_params(ctx.get(), snapkv_params()));
    const outcome exact = outcome_of(ctx.get(), tokens);
    CHECK(exact.selected.empty() && exact.logits == run(model, snapkv_params()).logits);
}

// it goes on from a selection, with all that a layer has
static void test_extend(llama_model * model) {
    const tokens_t tokens = make_tokens(model, N, 1);
    const tokens_t more = make_tokens(model, 40, 9);
    const auto ctx = make(model, context_params(), selective_params(0.2f, 0.0f));
    CHECK(prefill(ctx.get(), tokens) == 0);
    llama_snapkv_prompt prompt = llama_snapkv_default_prompt(0, more.data(), 40);
    CHECK(llama_snapkv_extend(ctx.get(), N, &prompt) == 0);
    CHECK(llama_snapkv_selected(ctx.get(), nullptr, 0) == 0);
    llama_token next = tokens[0];
    CHECK(llama_decode(ctx.get(), llama_batch_get_one(&next, 1)) == 0);
}

static bool stop_half_way(uint64_t done, uint64_t total, void * data) {
    auto & worst = *static_cast<double *>(data);
    CHECK(done <= total);
    worst = std::max(worst, (double) done / total);
    return done < total - 1;
}

static void test_refusals(llama_model * model) {
    llama_snapkv_params sp = selective_params(0.2f, 0.0f);
    sp.vault = true;
    CHECK(!llama_snapkv_supported(model, context_params(), sp));
    sp.vault = false;
    sp.layer_group = UINT32_MAX;
    CHECK(!llama_snapkv_supported(model, context_params(), sp));
    for (const float bad : { 0.0f, -1.0f, 1.5f }) {
        sp = selective_params(bad, 0.0f);
        CHECK(!llama_snapkv_supported(model, context_params(), sp));
    }
    sp = selective_params(0.2f, 2.0f);
    CHECK(!llama_snapkv_supported(model, context_params(), sp));

    const auto ctx = make(model, context_params(), selective_params(0.2f, 0.0f));
    const tokens_t tokens = make_tokens(model, N, 1);
    llama_snapkv_prompt prompt = llama_snapkv_default_prompt(0, tokens.data(), N);
    prompt.tap = [](const llama_snapkv_tap_data *, void *) {};
    CHECK(llama_snapkv_prefill(ctx.get(), &prompt) == -1);
    prompt.tap = nullptr;
    double reached = 0.0;
    prompt.progress = stop_half_way;
    prompt.progress_data = &reached;
    CHECK(llama_snapkv_prefill(ctx.get(), &prompt) == 2 && reached == 1.0);
    CHECK(prefill(ctx.get(), tokens) == 0);
    CHECK(logits(ctx.get()) == run(model, selective_params(0.2f, 0.0f)).logits);
}

// some models are none without their first layers
static bool has_later_layers(const llama_model * model) {
    return model->arch == LLM_ARCH_LLAMA || model->arch == LLM_ARCH_QWEN3 || (model->arch == LLM_ARCH_GEMMA4 && model->hparams.n_layer_kv_from_start == (int32_t) model->hparams.n_layer_all);
}

static tests_t tests_of(const llama_model * model) {
    tests_t tests = {
        { "exact", test_exact },
        { "rows", test_rows },
        { "prompts", test_prompts },
        { "extend", test_extend },
        { "refusals", test_refusals },
    };
    if (has_later_layers(model)) {
        tests.push_back({ "later layers", test_later_layers });
    }
    return tests;
}

int main(int argc, char ** argv) {
    model_path = argc == 2 ? argv[1] : "";
    return argc == 2 ? run_tests(argc, argv, tests_of) : 2;
}
