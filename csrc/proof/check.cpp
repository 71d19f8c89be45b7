#include "proof/check.h"

#include "snapkv.h"

#include "proof/tiny-model.h"
#include "state/context.h"
#include "upstream/devices.h"

#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <stdexcept>
#include <tuple>
#include <vector>

static constexpr uint32_t BUDGET = 256;
static constexpr uint32_t WINDOW = 16;
static constexpr uint32_t N_DECODED = 8; // tokens that are timed

using logits_t = std::vector<float>;

static logits_t last_logits(llama_context * ctx) {
    const float * logits = llama_get_logits_ith(ctx, -1);
    return { logits, logits + LLAMA_SNAPKV_TINY_VOCAB };
}

// not a number: infinitely far
static double max_diff(const std::vector<float> & a, const std::vector<float> & b) {
    double res = a.size() == b.size() ? 0.0 : INFINITY;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
        const double diff = std::fabs((double) a[i] - b[i]);
        res = std::isnan(diff) ? INFINITY : std::max(res, diff);
    }
    return res;
}

static double max_abs(const std::vector<float> & a) {
    return max_diff(a, std::vector<float>(a.size(), 0.0f));
}

// one model on one device, asked in several ways
struct llama_snapkv_prover {
    const llama_snapkv_proof & proof;
    llama_model_ptr model;
    std::vector<llama_token> tokens;
    double seconds = 0.0; // of the last prompt

    llama_snapkv_prover(ggml_backend_dev_t dev, const llama_snapkv_proof & proof) :
        proof(proof),
        model(llama_snapkv_tiny_model({ dev }, { proof.head_dim_k, proof.head_dim_v, proof.n_head, proof.n_head_kv })) {
        uint32_t x = 1;
        for (uint32_t i = 0; i < proof.n_tokens; ++i) {
            x = x * 1664525u + 1013904223u;
            tokens.push_back((llama_token) (x >> 24)); // below LLAMA_SNAPKV_TINY_VOCAB
        }
    }

    llama_context_params context_params() const {
        llama_context_params cp = llama_context_default_params();
        cp.n_ctx = proof.n_tokens + 64;
        cp.n_batch = proof.n_tokens;
        cp.n_ubatch = proof.n_ubatch;
        cp.type_k = (ggml_type) proof.type_k;
        cp.type_v = (ggml_type) proof.type_v;
        cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
        cp.n_threads = cp.n_threads_batch = 1; // for a model so small more would wait for each other
        return cp;
    }

    void decode(llama_context * ctx, llama_token * tokens, uint32_t n) {
        if (!ctx || llama_decode(ctx, llama_batch_get_one(tokens, (int32_t) n)) != 0) {
            throw std::runtime_error("llama_decode() fails there");
        }
        llama_synchronize(ctx);
    }

    // as llama.cpp itself computes it
    logits_t plain() {
        llama_context_ptr ctx(llama_init_from_model(model.get(), context_params()));
        const int64_t started = ggml_time_us();
        decode(ctx.get(), tokens.data(), (uint32_t) tokens.size());
        seconds = (double) (ggml_time_us() - started) / 1e6;
        return last_logits(ctx.get());
    }

    llama_context_ptr prefill(llama_snapkv_ops ops) {
        llama_snapkv_params params = llama_snapkv_default_params();
        params.budget = BUDGET;
        params.window_size = WINDOW;
        params.layer_group = proof.layer_group;
        params.ops = ops;
        params.keep_scores = true;
        llama_context_ptr ctx(llama_snapkv_init_from_model(model.get(), context_params(), params));
        const llama_snapkv_prompt prompt = llama_snapkv_default_prompt(0, tokens.data(), (uint32_t) tokens.size());
        const int64_t started = ggml_time_us();
        if (!ctx || llama_snapkv_prefill(ctx.get(), &prompt) != 0) {
            throw std::runtime_error(llama_snapkv_last_error());
        }
        llama_synchronize(ctx.get());
        seconds = (double) (ggml_time_us() - started) / 1e6;
        return ctx;
    }

    // of all layers and heads, one after the other
    static std::vector<float> scores(const llama_context * ctx) {
        std::vector<float> res;
        for (uint32_t ic = 0; ic < llama_snapkv_n_layer(ctx); ++ic) {
            for (uint32_t h = 0; h < llama_snapkv_n_head_kv(ctx, ic); ++h) {
                const size_t n = res.size();
                const uint32_t added = llama_snapkv_scores(ctx, ic, h, nullptr, 0);
                res.resize(n + added);
                llama_snapkv_scores(ctx, ic, h, res.data() + n, added);
            }
        }
        return res;
    }

    // tokens a second
    double decode_speed(llama_context * ctx) {
        const int64_t started = ggml_time_us();
        for (uint32_t i = 0; i < N_DECODED; ++i) {
            decode(ctx, tokens.data() + i, 1);
        }
        return N_DECODED * 1e6 / (double) std::max<int64_t>(1, ggml_time_us() - started);
    }
};

using shape_t = std::tuple<ggml_backend_dev_t, uint32_t, uint32_t, uint32_t, uint32_t, int32_t, int32_t, uint32_t, uint32_t>;

// what is the same for every layer group: what llama_decode() says of the prompt, and its votes
struct llama_snapkv_answers {
    shape_t shape;
    logits_t logits;
    double seconds;
    // empty until somebody asks for it
    logits_t on_cpu;
    std::vector<float> votes; // that ggml's ops count
};

// of the prover's model. the last one is kept: questions that differ in the layer group alone come one after the other
static llama_snapkv_answers & answers_of(llama_snapkv_prover & prover, ggml_backend_dev_t dev) {
    static thread_local llama_snapkv_answers last;
    const auto & proof = prover.proof;
    const shape_t shape = { dev, proof.head_dim_k, proof.head_dim_v, proof.n_head, proof.n_head_kv, proof.type_k, proof.type_v, proof.n_tokens, proof.n_ubatch };
    if (last.shape != shape) {
        const logits_t logits = prover.plain();
        const bool is_cpu = ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU;
        last = { shape, logits, prover.seconds, is_cpu ? logits : logits_t(), {} };
    }
    return last;
}

static ggml_backend_dev_t device_of(const char * name) {
    ggml_backend_dev_t dev = name ? ggml_backend_dev_by_name(name) : nullptr;
    if (!dev) {
        throw std::runtime_error(format("there is no device %s", name ? name : "without a name"));
    }
    return dev;
}

// with_votes: and is what is beside the logits right, too?
static void prove(ggml_backend_dev_t dev, llama_snapkv_proof & proof, bool with_votes) {
    if (proof.n_tokens < 2 * BUDGET || proof.n_ubatch == 0 || proof.n_head_kv == 0 || proof.n_head % proof.n_head_kv != 0 || proof.head_dim_k % 2 != 0) {
        throw std::runtime_error(format("a proof takes at least %u tokens, n_ubatch, KV heads, query heads that are a multiple of them, and heads of an even size", 2 * BUDGET));
    }
    const llama_snapkv_proving proving;
    llama_snapkv_prover prover(dev, proof);
    llama_snapkv_answers & plain = answers_of(prover, dev);
    proof.seconds_plain = plain.seconds;

    llama_context_ptr ctx = prover.prefill(LLAMA_SNAPKV_OPS_AUTO);
    proof.seconds_prefill = prover.seconds;
    const logits_t found = last_logits(ctx.get());
    proof.max_diff = max_diff(plain.logits, found);
    proof.max_logit = max_abs(plain.logits);

    llama_snapkv_stats stats = {};
    stats.size = sizeof(stats);
    llama_snapkv_get_stats(ctx.get(), &stats);
    proof.ratio_fused = stats.ratio_fused;
    if (!with_votes) {
        return;
    }
    proof.max_diff_ops = -1.0;
    if (stats.ratio_fused > 0.0) {
        if (plain.votes.empty()) {
            plain.votes = prover.scores(prover.prefill(LLAMA_SNAPKV_OPS_GGML).get());
        }
        proof.max_diff_ops = max_diff(prover.scores(ctx.get()), plain.votes) / std::max(1e-30, max_abs(plain.votes));
    }
    proof.decode_speed = prover.decode_speed(ctx.get());
    ctx.reset();

    if (plain.on_cpu.empty()) {
        plain.on_cpu = llama_snapkv_prover(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), proof).plain();
    }
    proof.max_diff_cpu = max_diff(plain.logits, plain.on_cpu);
}

bool llama_snapkv_prove(const char * device, llama_snapkv_proof * proof) {
    if (proof->size != sizeof(*proof)) {
        llama_snapkv_set_error("the caller's llama_snapkv_proof is of another version");
        return false;
    }
    std::string error;
    try {
        prove(device_of(device), *proof, true);
    } catch (const std::exception & e) {
        error = e.what();
    }
    llama_snapkv_error() = error;
    return error.empty();
}

llama_snapkv_proof llama_snapkv_default_proof(void) {
    llama_snapkv_proof res = {};
    const llama_snapkv_tiny_shape shape;
    res.size = sizeof(res);
    res.head_dim_k = shape.head_dim_k;
    res.head_dim_v = shape.head_dim_v;
    res.n_head = shape.n_head;
    res.n_head_kv = shape.n_head_kv;
    res.type_k = res.type_v = GGML_TYPE_F16;
    res.n_tokens = 700; // flash attention of some backends is another one for short caches
    res.n_ubatch = 100; // no multiple of what kernels take at once
    res.layer_group = 1;
    return res;
}

// a proof of the heads that a model has
static llama_snapkv_proof proof_for(const llama_model & model, const llama_context_params & cparams) {
    llama_snapkv_proof res = llama_snapkv_default_proof();
    const auto & hparams = model.hparams;
    res.type_k = cparams.type_k;
    res.type_v = cparams.type_v;
    for (uint32_t il = 0; il < hparams.n_layer() && !hparams.is_mla(); ++il) {
        if (hparams.n_head_kv(il) > 0 && !hparams.is_swa(il)) {
            res.head_dim_k = hparams.n_embd_head_k(il);
            res.head_dim_v = hparams.n_embd_head_v(il);
            res.n_head = hparams.n_head(il);
            res.n_head_kv = hparams.n_head_kv(il);
            break;
        }
    }
    return res;
}

// "" if it is exact, else what came out
static std::string prove_once(ggml_backend_dev_t dev, llama_snapkv_proof proof) {
    static std::mutex mutex;
    static std::map<std::tuple<ggml_backend_dev_t, uint32_t, uint32_t, uint32_t, uint32_t, int32_t, int32_t>, std::string> known;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto key = std::make_tuple(dev, proof.head_dim_k, proof.head_dim_v, proof.n_head, proof.n_head_kv, proof.type_k, proof.type_v);
    const auto it = known.find(key);
    if (it != known.end()) {
        return it->second;
    }
    std::string res;
    for (const uint32_t group : { 1u, UINT32_MAX }) {
        proof.layer_group = group;
        try {
            prove(dev, proof, false);
            if (proof.max_diff != 0.0 && res.empty()) {
                res = format("its last logits, up to %.3g, differ from those of llama_decode() by %.3g", proof.max_logit, proof.max_diff);
            }
        } catch (const std::exception & e) {
            res = res.empty() ? format("it ended with: %s", e.what()) : res;
        }
    }
    return known[key] = res;
}

std::string llama_snapkv_check_unproven(const llama_model & model, const llama_context_params & cparams, std::string & warning) {
    warning.clear();
    for (const auto & unproven : llama_snapkv_unproven_devices(model, cparams)) {
        const llama_snapkv_proof proof = proof_for(model, cparams);
        const std::string shape = format("a small model with %u KV heads of %u elements was computed there", proof.n_head_kv, proof.head_dim_k);
        const std::string found = prove_once(unproven.dev, proof);
        if (!found.empty() && llama_snapkv_tries_unproven() < 2) {
            return format("%s, and the check says no: %s, and %s. Compute on the CPU (n_gpu_layers 0, op_offload false), or set the environment variable %s=2 to go on all the same",
                    unproven.what.c_str(), shape.c_str(), found.c_str(), LLAMA_SNAPKV_UNPROVEN);
        }
        if (unproven.checked && found.empty()) {
            warning += format("%s%s was checked: %s, and its logits were those of llama_decode(), difference 0. Other devices of ggml's backend %s were proven", warning.empty() ? "" : "; ",
                    ggml_backend_dev_name(unproven.dev), shape.c_str(), ggml_backend_reg_name(ggml_backend_dev_backend_reg(unproven.dev)));
            continue;
        }
        const std::string outcome = found.empty() ? "its logits were those of llama_decode(), difference 0" : found;
        warning += format("%s%s. %s=%d tries it: %s, and %s%s%s. Compare answers with those of the CPU", warning.empty() ? "" : "; ", unproven.what.c_str(),
                LLAMA_SNAPKV_UNPROVEN, llama_snapkv_tries_unproven(), shape.c_str(), outcome.c_str(),
                unproven.models.empty() ? "" : "; that says nothing of ", unproven.models.c_str());
    }
    if (!warning.empty()) {
        LLAMA_LOG_WARN("snapkv: %s\n", warning.c_str());
    }
    return "";
}
