// Is layer-group prefill exact? For each model: the last token's logits after a prefill by groups of G cached layers,
// against llama_decode() with equal chunks, and the states of recurrent layers, byte by byte. Prints one JSON line a model;
// exits with 1 if one differs.
//
//   test-snapkv-exact [-n tokens] [-u ubatch] [-g G,G,...] [-t f16|q8_0|q4_0] [-b budget] [-w window] [-s sequences] [-j threads]
//                     [-r host:port] [-x N,N] [-m main GPU] [-p layer|row] [-l layers on GPUs] MODEL.gguf ...
//
// -r: all layers on an RPC server's device, llama_decode()'s too. -x: GPUs share the model in this proportion, by layers, or with -p row by
// rows of the matrices; -m: all layers on this GPU. G = 0 stands for all cached layers. Each sequence gets the same prompt, one after the other. Tokens are drawn with a fixed seed.

#include "llama-cpp.h"
#include "snapkv.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

struct options {
    uint32_t n = 200;
    uint32_t ubatch = 64;
    uint32_t budget = 0; // 0: half of the prompt
    uint32_t window = 8;
    uint32_t n_seqs = 1;
    int32_t n_threads = 0; // 0: llama.cpp's default
    ggml_type type = GGML_TYPE_F16;
    std::vector<uint32_t> groups = { 1, 2, 0 };
    std::vector<float> split; // empty: by free memory
    int32_t main_gpu = -1;    // -1: all share
    bool by_rows = false;
    int32_t n_gpu_layers = 99;
    std::vector<std::string> models;
};

static std::vector<llama_token> random_tokens(const llama_model * model, uint32_t n) {
    std::mt19937 gen(1);
    std::uniform_int_distribution<llama_token> dis(0, llama_vocab_n_tokens(llama_model_get_vocab(model)) - 1);
    std::vector<llama_token> tokens(n);
    for (auto & t : tokens) {
        t = dis(gen);
    }
    return tokens;
}

static std::vector<float> last_logits(llama_context * ctx) {
    const float * logits = llama_get_logits_ith(ctx, -1);
    return { logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx))) };
}

static double max_diff(const std::vector<float> & a, const std::vector<float> & b) {
    double res = 0.0;
    for (size_t i = 0; i < a.size(); ++i) {
        const double d = std::fabs((double) a[i] - b[i]);
        res = std::isnan(d) ? INFINITY : std::max(res, d);
    }
    return res;
}

// states of all recurrent layers, and their position; empty for a model without
static std::vector<uint8_t> recurrent_state(llama_context * ctx, llama_seq_id seq_id) {
    if (!llama_model_is_hybrid(llama_get_model(ctx))) {
        return {};
    }
    static constexpr size_t HEADER = sizeof(uint32_t) + sizeof(llama_seq_id);
    std::vector<uint8_t> res(llama_state_seq_get_size_ext(ctx, seq_id, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY));
    res.resize(llama_state_seq_get_data_ext(ctx, res.data(), res.size(), seq_id, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY));
    res.erase(res.begin(), res.begin() + std::min(res.size(), HEADER));
    return res;
}

static size_t n_different(const std::vector<uint8_t> & a, const std::vector<uint8_t> & b) {
    size_t res = std::max(a.size(), b.size()) - std::min(a.size(), b.size());
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
        res += a[i] != b[i];
    }
    return res;
}

static std::string json_escape(const std::string & s) {
    std::string res;
    for (const char c : s) {
        if (c == '"' || c == '\\') {
            res += '\\';
        }
        res += c == '\n' ? ' ' : c;
    }
    return res;
}

static bool check_model(const std::string & path, const options & opt) {
    llama_model_params mp = llama_model_default_params();
    mp.n_gpu_layers = opt.n_gpu_layers;
    mp.tensor_split = opt.split.empty() ? nullptr : opt.split.data();
    mp.split_mode = opt.by_rows ? LLAMA_SPLIT_MODE_ROW : mp.split_mode;
    if (opt.main_gpu >= 0) {
        mp.split_mode = LLAMA_SPLIT_MODE_NONE;
        mp.main_gpu = opt.main_gpu;
    }
    llama_model_ptr model(llama_model_load_from_file(path.c_str(), mp));
    if (!model) {
        printf("{\"model\": \"%s\", \"error\": \"cannot be loaded\"}\n", json_escape(path).c_str());
        return false;
    }
    char arch[64] = "";
    llama_model_meta_val_str(model.get(), "general.architecture", arch, sizeof(arch));

    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = opt.n + 64;
    cp.n_batch = opt.n;
    cp.n_ubatch = opt.ubatch;
    cp.type_k = opt.type;
    cp.type_v = opt.type;
    cp.no_perf = true;
    cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    if (opt.n_threads > 0) {
        cp.n_threads = cp.n_threads_batch = opt.n_threads;
    }

    llama_snapkv_params sp = llama_snapkv_default_params();
    sp.window_size = opt.window;
    sp.budget = opt.budget ? opt.budget : opt.n / 2;
    sp.decode_cells = 64;

    printf("{\"model\": \"%s\", \"arch\": \"%s\", ", json_escape(path.substr(path.find_last_of('/') + 1)).c_str(), arch);
    if (!llama_snapkv_supported(model.get(), cp, sp)) {
        printf("\"supported\": false, \"reason\": \"%s\"}\n", json_escape(llama_snapkv_last_error()).c_str());
        fflush(stdout);
        return true;
    }
    printf("\"supported\": true, ");

    std::vector<llama_token> tokens = random_tokens(model.get(), opt.n);
    std::vector<float> expected;
    std::vector<uint8_t> expected_state;
    {
        llama_context_ptr ctx(llama_init_from_model(model.get(), cp));
        if (!ctx || llama_decode(ctx.get(), llama_batch_get_one(tokens.data(), (int32_t) tokens.size())) != 0) {
            printf("\"error\": \"llama_decode failed\"}\n");
            return false;
        }
        expected = last_logits(ctx.get());
        expected_state = recurrent_state(ctx.get(), 0);
    }

    bool ok = true;
    std::string diffs;
    cp.n_seq_max = opt.n_seqs;
    cp.n_ctx *= opt.n_seqs;
    uint32_t n_cached = 0;
    for (const uint32_t group : opt.groups) {
        sp.layer_group = group ? group : UINT32_MAX;
        llama_context_ptr ctx(llama_snapkv_init_from_model(model.get(), cp, sp));
        double diff = 0.0;
        size_t state_diff = 0;
        for (uint32_t seq_id = 0; seq_id < opt.n_seqs; ++seq_id) {
            const llama_snapkv_prompt prompt = llama_snapkv_default_prompt((llama_seq_id) seq_id, tokens.data(), opt.n);
            const int32_t rc = ctx ? llama_snapkv_prefill(ctx.get(), &prompt) : -1;
            if (rc != 0) {
                printf("\"error\": \"G = %u: %d: %s\"}\n", group, rc, json_escape(llama_snapkv_last_error()).c_str());
                return false;
            }
            diff = std::max(diff, max_diff(expected, last_logits(ctx.get())));
            for (uint32_t s = 0; s <= seq_id; ++s) {
                state_diff += n_different(expected_state, recurrent_state(ctx.get(), (llama_seq_id) s));
            }
        }
        n_cached = llama_snapkv_n_layer(ctx.get());

        // and the sequence goes on
        llama_token next = tokens[0];
        const bool decodes = llama_decode(ctx.get(), llama_batch_get_one(&next, 1)) == 0 && std::isfinite(last_logits(ctx.get())[0]);

        llama_snapkv_stats stats = {};
        stats.size = sizeof(stats);
        llama_snapkv_get_stats(ctx.get(), &stats);
        char buf[192];
        snprintf(buf, sizeof(buf), "%s{\"G\": %u, \"max_diff\": %.9g, \"state_diff\": %zu, \"kept\": %u, \"coverage\": %.4f, \"fused\": %.2f}",
                diffs.empty() ? "" : ", ", stats.layer_group, diff, state_diff, stats.n_kept, stats.coverage, stats.ratio_fused);
        diffs += buf;
        ok = ok && diff == 0.0 && state_diff == 0 && decodes && stats.n_kept == sp.budget;
    }
    printf("\"layers\": %d, \"cached\": %u, \"state_bytes\": %zu, \"exact\": %s, \"runs\": [%s]}\n", llama_model_n_layer(model.get()), n_cached, expected_state.size(), ok ? "true" : "false", diffs.c_str());
    fflush(stdout);
    return ok;
}

static ggml_type parse_type(const std::string & name) {
    if (name == "q8_0") {
        return GGML_TYPE_Q8_0;
    }
    return name == "q4_0" ? GGML_TYPE_Q4_0 : GGML_TYPE_F16;
}

// llama.cpp then takes its device for layers, before any other
static bool add_rpc_server(const char * endpoint) {
    ggml_backend_reg_t rpc = ggml_backend_reg_by_name("RPC");
    if (!rpc) {
        fprintf(stderr, "this build has no RPC backend: build with -DGGML_RPC=ON\n");
        return false;
    }
    auto * add = (ggml_backend_reg_t (*)(const char *)) ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_add_server");
    ggml_backend_reg_t server = add ? add(endpoint) : nullptr;
    if (!server) {
        fprintf(stderr, "no RPC server answers at %s\n", endpoint);
        return false;
    }
    ggml_backend_register(server);
    return true;
}

static bool parse(int argc, char ** argv, options & opt) {
    for (int i = 1; i < argc; ++i) {
        const std::string arg = argv[i];
        if (arg[0] != '-') {
            opt.models.push_back(arg);
            continue;
        }
        if (arg.size() != 2 || ++i >= argc) {
            return false;
        }
        const char * value = argv[i];
        switch (arg[1]) {
            case 'n': opt.n = strtoul(value, nullptr, 10); break;
            case 'u': opt.ubatch = strtoul(value, nullptr, 10); break;
            case 'b': opt.budget = strtoul(value, nullptr, 10); break;
            case 'w': opt.window = strtoul(value, nullptr, 10); break;
            case 's': opt.n_seqs = strtoul(value, nullptr, 10); break;
            case 'j': opt.n_threads = (int32_t) strtol(value, nullptr, 10); break;
            case 't':
                opt.type = parse_type(value);
                break;
            case 'r':
                if (!add_rpc_server(value)) {
                    return false;
                }
                break;
            case 'm': opt.main_gpu = (int32_t) strtol(value, nullptr, 10); break;
            case 'p': opt.by_rows = strcmp(value, "row") == 0; break;
            case 'l': opt.n_gpu_layers = (int32_t) strtol(value, nullptr, 10); break;
            case 'x':
                opt.split.assign(llama_max_devices(), 0.0f); // as many as llama.cpp reads
                for (auto [p, i] = std::pair<const char *, size_t>(value, 0); *p && i < opt.split.size(); p += *p == ',', ++i) {
                    opt.split[i] = strtof(p, const_cast<char **>(&p));
                }
                break;
            case 'g':
                opt.groups.clear();
                for (const char * p = value; *p; p += *p == ',') {
                    opt.groups.push_back(strtoul(p, const_cast<char **>(&p), 10));
                }
                break;
            default: return false;
        }
    }
    return !opt.models.empty();
}

int main(int argc, char ** argv) {
    ggml_backend_load_all();
    options opt;
    if (!parse(argc, argv, opt)) {
        fprintf(stderr, "usage: %s [-n tokens] [-u ubatch] [-g G,G,...] [-t f16|q8_0|q4_0] [-b budget] [-w window] [-s sequences] [-j threads] [-r host:port] [-x N,N] [-m main GPU] [-p layer|row] [-l layers on GPUs] MODEL.gguf ...\n", argv[0]);
        return 2;
    }
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level == GGML_LOG_LEVEL_ERROR && !strstr(text, "snapkv:")) {
            fputs(text, stderr);
        }
    },
            nullptr);
    bool ok = true;
    for (const auto & path : opt.models) {
        ok = check_model(path, opt) && ok;
    }
    return ok ? 0 : 1;
}
