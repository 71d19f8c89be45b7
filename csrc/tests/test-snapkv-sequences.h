// What test programs of a context's sequences share: checks that count failures, tokens, a prefill, and main.

#pragma once

#include "snapkv.h"

#include "llama-cpp.h"

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

static int n_failed = 0;
static std::string current; // model and test

#define CHECK(x)                                                                \
    do {                                                                        \
        if (!(x)) {                                                             \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, current.c_str(), #x); \
            n_failed++;                                                         \
        }                                                                       \
    } while (0)

using tokens_t = std::vector<llama_token>;

static tokens_t make_tokens(const llama_model * model, uint32_t n, uint32_t seed) {
    const uint32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    tokens_t res(n);
    for (uint32_t i = 0; i < n; ++i) {
        res[i] = (llama_token) ((seed + i * 2654435761u) % 997 % n_vocab);
    }
    return res;
}

static int32_t prefill(llama_context * ctx, const tokens_t & tokens, llama_seq_id seq_id = 0) {
    const llama_snapkv_prompt prompt = llama_snapkv_default_prompt(seq_id, tokens.data(), (uint32_t) tokens.size());
    return llama_snapkv_prefill(ctx, &prompt);
}

using tests_t = std::vector<std::pair<const char *, void (*)(llama_model *)>>;

// main of a program that is given models: of each it runs the tests that tests_of has for it
static int run_tests(int argc, char ** argv, tests_t (*tests_of)(const llama_model *)) {
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
