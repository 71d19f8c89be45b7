// What test programs of contexts share: checks that count failures, tokens, a prefill, what it leaves, and main.

#pragma once

#include "check.h"

#include "snapkv.h"

#include "llama-cpp.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

using tokens_t = std::vector<llama_token>;
using bytes_t = std::vector<uint8_t>;
using row_t = std::vector<float>;

[[maybe_unused]] static tokens_t make_tokens(const llama_model * model, uint32_t n, uint32_t seed) {
    const uint32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    tokens_t res(n);
    for (uint32_t i = 0; i < n; ++i) {
        res[i] = (llama_token) ((seed + i * 2654435761u) % 997 % n_vocab);
    }
    return res;
}

// nothing can be tested without it
[[maybe_unused]] static llama_context_ptr make_context(llama_model * model, const llama_context_params & cp, const llama_snapkv_params & sp) {
    llama_context_ptr ctx(llama_snapkv_init_from_model(model, cp, sp));
    if (!ctx) {
        printf("%s: no context: %s\nFAILED\n", current.c_str(), llama_snapkv_last_error());
        exit(1);
    }
    return ctx;
}

[[maybe_unused]] static int32_t prefill(llama_context * ctx, const tokens_t & tokens, llama_seq_id seq_id = 0) {
    const llama_snapkv_prompt prompt = llama_snapkv_default_prompt(seq_id, tokens.data(), (uint32_t) tokens.size());
    return llama_snapkv_prefill(ctx, &prompt);
}

[[maybe_unused]] static row_t logits(llama_context * ctx, int32_t i = -1) {
    const float * row = llama_get_logits_ith(ctx, i);
    CHECK(row);
    return row ? row_t(row, row + llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)))) : row_t();
}

// K, V and states of recurrent layers, or states only; without the head of the format, which names the sequence
[[maybe_unused]] static bytes_t state_of(llama_context * ctx, llama_seq_id seq_id, llama_state_seq_flags flags = 0) {
    bytes_t res(llama_state_seq_get_size_ext(ctx, seq_id, flags));
    CHECK(llama_state_seq_get_data_ext(ctx, res.data(), res.size(), seq_id, flags) == res.size());
    return { res.begin() + 8, res.end() };
}

// positions, for each cached layer and KV head
[[maybe_unused]] static std::vector<int32_t> kept_of(llama_context * ctx, llama_seq_id seq_id) {
    std::vector<int32_t> res;
    for (uint32_t ic = 0; ic < llama_snapkv_n_layer(ctx); ++ic) {
        for (uint32_t h = 0; h < llama_snapkv_n_head_kv(ctx, ic); ++h) {
            std::vector<int32_t> ids(llama_snapkv_kept(ctx, seq_id, ic, h, nullptr, 0));
            llama_snapkv_kept(ctx, seq_id, ic, h, ids.data(), (uint32_t) ids.size());
            res.insert(res.end(), ids.begin(), ids.end());
        }
    }
    return res;
}

// squared error of logits over their square, where a batch has other tokens: products of several columns are summed in another
// order than those of one, and what is rounded to f16 after that may go the other way: up to 1e-10 for most models, and 5e-6 where
// attention is as sharp as in our gemma4-shared. On this scale another sequence's logits are about 1
static constexpr double MAX_ERROR = 1e-4;

[[maybe_unused]] static double error_of(const row_t & row, const row_t & expected) {
    double error = 0.0;
    double norm = 0.0;
    for (size_t i = 0; i < expected.size(); ++i) {
        error += ((double) row[i] - expected[i]) * ((double) row[i] - expected[i]);
        norm += (double) expected[i] * expected[i];
    }
    return error / norm;
}

using tests_t = std::vector<std::pair<const char *, void (*)(llama_model *)>>;

// main of a program that is given models: of each it runs the tests that tests_of has for it
[[maybe_unused]] static int run_tests(int argc, char ** argv, tests_t (*tests_of)(const llama_model *)) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s MODEL.gguf ...\n", argv[0]);
        return 2;
    }
    ggml_backend_load_all();
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    for (int i = 1; i < argc; ++i) {
        const std::string name = argv[i];
        current = name;
        const llama_model_ptr model(llama_model_load_from_file(argv[i], llama_model_default_params()));
        CHECK(model);
        if (!model) {
            continue;
        }
        for (const auto & [test, run] : tests_of(model.get())) {
            current = name + ": " + test;
            run(model.get());
        }
    }
    printf("%s\n", n_failed ? "FAILED" : "OK");
    return n_failed ? 1 : 0;
}
