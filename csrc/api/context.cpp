// Contexts, for the outside: made, asked and set.
#include "snapkv.h"

#include "prefill/support.h"
#include "proof/check.h"
#include "state/cells.h"
#include "state/context.h"
#include "state/lock.h"
#include "state/logits.h"
#include "state/params.h"
#include "upstream/access.h"
#include "upstream/layout.h"
#include "upstream/snapkv-alloc.h"

#include "llama-impl.h"

#include <algorithm>

using access = llama_snapkv_access;

// cells of a stream. a unified cache has one stream for all sequences
static uint32_t cells_needed(const llama_model & model, const llama_snapkv_params & params, uint32_t n_ctx_seq, uint32_t n_seqs_per_stream) {
    // flash-attention kernels of GPUs want a multiple of 256 rows; the CPU's take any number
    const bool cpu_only = model.devices.empty();
    const uint64_t rows = llama_snapkv_n_rows_max(params, n_ctx_seq);
    return (uint32_t) GGML_PAD((rows + params.decode_cells) * n_seqs_per_stream, cpu_only ? 32 : LLAMA_SNAPKV_N_KV_PAD);
}

//
// context
//

static std::string & last_warning() {
    static thread_local std::string warning;
    return warning;
}

const char * llama_snapkv_last_warning(void) {
    return last_warning().c_str();
}

bool llama_snapkv_supported(llama_model * model, llama_context_params cparams, llama_snapkv_params params) {
    if (!model) {
        llama_snapkv_set_error("model is NULL");
        return false;
    }
    try {
        std::string warning;
        std::string reason = llama_snapkv_check_support(*model, cparams, params);
        if (reason.empty()) {
            reason = llama_snapkv_check_unproven(*model, cparams, warning); // has contexts of its own, which come here
        }
        llama_snapkv_error() = reason;
        last_warning() = warning;
    } catch (const std::exception & e) {
        llama_snapkv_error() = e.what();
    }
    return llama_snapkv_error().empty();
}

bool llama_snapkv_check_model(const llama_model * model) {
    llama_snapkv_error() = model ? llama_snapkv_check_layout(*model) : "model is NULL";
    return llama_snapkv_error().empty();
}

llama_context * llama_snapkv_init_from_model(llama_model * model, llama_context_params cparams, llama_snapkv_params params) {
    if (!llama_snapkv_supported(model, cparams, params)) {
        llama_snapkv_set_error(llama_snapkv_error());
        return nullptr;
    }
    if (llama_snapkv_alloc_fails("cache")) {
        llama_snapkv_set_error("out of memory: the compact KV cache");
        return nullptr;
    }

    cparams.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    const uint32_t n_seq_max = std::max(1u, cparams.n_seq_max);
    // as llama_context rounds them
    const uint32_t n_ctx = GGML_PAD(cparams.n_ctx == 0 ? model->hparams.n_ctx_train : cparams.n_ctx, 256);
    const uint32_t n_ctx_seq = cparams.kv_unified ? n_ctx : GGML_PAD(n_ctx / n_seq_max, 256);

    llama_context * ctx = nullptr;
    {
        llama_snapkv_cells_scope scope(cells_needed(*model, params, n_ctx_seq, cparams.kv_unified ? n_seq_max : 1), false);
        ctx = llama_init_from_model(model, cparams);
    }
    if (!ctx) {
        llama_snapkv_set_error("llama.cpp could not make the context");
        return nullptr;
    }
    auto sk = std::make_shared<llama_snapkv>();
    sk->params = params;
    access::snapkv(*ctx) = std::move(sk);
    llama_snapkv_error().clear();
    return ctx;
}

static uint32_t seqs_per_stream(const llama_context & ctx) {
    return ctx.get_cparams().kv_unified ? ctx.get_cparams().n_seq_max : 1;
}

bool llama_snapkv_set_params(llama_context * ctx, llama_snapkv_params params) {
    llama_snapkv * sk = llama_snapkv_of(ctx);
    if (!sk || llama_snapkv_refuses(*ctx, -1)) {
        return false;
    }
    std::string error = llama_snapkv_check_params(params);
    const uint32_t needed = error.empty() ? cells_needed(ctx->get_model(), params, ctx->n_ctx_seq(), seqs_per_stream(*ctx)) : 0;
    const uint32_t have = llama_snapkv_memory_of(*ctx).base->get_size();
    if (error.empty() && std::min(needed, ctx->n_ctx_seq()) > have) {
        error = format("budget and decode_cells need %u cells and the context has %u: make a new context", needed, have);
    }
    if (error.empty()) {
        error = llama_snapkv_check_recall(params, ctx->n_seq_max(), ctx->get_cparams().kv_unified);
    }
    if (error.empty()) {
        error = llama_snapkv_check_memory(ctx->get_model(), llama_snapkv_memory_of(*ctx), params);
    }
    if (!error.empty()) {
        llama_snapkv_set_error(error);
        return false;
    }
    sk->params = params;
    return true;
}

//
// logits
//

bool llama_snapkv_set_logits(llama_context * ctx, const float * logits) {
    if (!llama_snapkv_of(ctx)) {
        return false;
    }
    ctx->synchronize();
    try {
        std::copy_n(logits, ctx->get_model().vocab.n_tokens(), llama_snapkv_reserve_logits(*ctx));
    } catch (const std::exception & e) {
        llama_snapkv_set_error(e.what());
        return false;
    }
    llama_snapkv_show_logits(*ctx);
    return true;
}
