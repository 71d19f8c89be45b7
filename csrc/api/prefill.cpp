// The prefill, for the outside: a prompt, or what goes on from one.
#include "snapkv.h"

#include "graph/runner.h"
#include "prefill/prefill.h"
#include "staging/staging.h"
#include "state/cells.h"
#include "state/context.h"
#include "state/params.h"
#include "upstream/access.h"

#include "llama-impl.h"

#include <algorithm>

using access = llama_snapkv_access;

// a prompt that needs no eviction
static int32_t prefill_ordinary(llama_context & ctx, llama_snapkv & sk, llama_seq_id seq_id, const llama_token * tokens, uint32_t n_tokens,
        llama_snapkv_progress_callback progress, void * user_data) {
    llama_batch batch = llama_batch_init((int32_t) ctx.n_batch(), 0, 1);
    int32_t rc = 0;
    for (uint32_t p = 0; p < n_tokens && rc == 0; p += batch.n_tokens) {
        batch.n_tokens = (int32_t) std::min(ctx.n_batch(), n_tokens - p);
        for (int32_t i = 0; i < batch.n_tokens; ++i) {
            batch.token[i] = tokens[p + i];
            batch.pos[i] = (llama_pos) (p + i);
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = seq_id;
            batch.logits[i] = p + i + 1 == n_tokens;
        }
        rc = llama_snapkv_decode(&ctx, batch);
        ctx.synchronize();
        if (rc == 0 && progress && !progress(p + batch.n_tokens, n_tokens, user_data)) {
            rc = 2;
        }
    }
    llama_batch_free(batch);

    if (rc != 0) {
        ctx.get_memory()->seq_rm(seq_id, -1, -1);
        if (rc > 0) {
            llama_snapkv_set_error(rc == 1 ? format("no free cells for a prompt of %u tokens: remove other sequences first", n_tokens) : "the prefill was aborted");
        }
        return rc;
    }
    sk.stats.n_kept = n_tokens;
    sk.stats.coverage = 1.0;
    sk.stats.bytes_compute = llama_snapkv_compute_bytes(ctx);
    return 0;
}

static std::string check_tokens(const llama_context & ctx, llama_seq_id seq_id, const llama_token * tokens, uint32_t n_tokens, uint32_t pos0) {
    if (!tokens || n_tokens == 0) {
        return "the prompt is empty";
    }
    if ((uint64_t) pos0 + n_tokens > ctx.n_ctx_seq()) {
        return format("the prompt has %u tokens and the context %u: make it larger (n_ctx) or the prompt shorter", pos0 + n_tokens, ctx.n_ctx_seq());
    }
    if (seq_id < 0 || (uint32_t) seq_id >= ctx.n_seq_max()) {
        return format("sequence id %d is not in [0, %u)", seq_id, ctx.n_seq_max());
    }
    return "";
}

// what was counted for the last prefill is forgotten
static void begin_stats(llama_context & ctx, llama_snapkv & sk, uint32_t n_prompt) {
    const auto mem = llama_snapkv_memory_of(ctx);
    sk.has_stats = false;
    sk.scores.clear();
    sk.coverage.clear();
    sk.stats = {};
    sk.stats.size = sizeof(sk.stats);
    sk.stats.n_prompt = n_prompt;
    sk.stats.chunk = ctx.n_ubatch();
    for (const auto & [_, size] : ctx.get_memory()->memory_breakdown()) {
        sk.stats.bytes_compact += size;
    }
    sk.stats.bytes_full_cache = llama_snapkv_full_bytes(*mem.base, GGML_PAD(n_prompt, LLAMA_SNAPKV_N_KV_PAD));
    if (mem.iswa) {
        for (const auto & [_, size] : mem.iswa->get_swa()->memory_breakdown()) {
            sk.stats.bytes_full_cache += size;
        }
    }
}

static int32_t run_groups(llama_context & ctx, llama_snapkv & sk, const llama_snapkv_prompt & prompt) {
    const int64_t t0 = ggml_time_us();
    const int32_t rc = llama_snapkv_prefill_groups(ctx, sk, prompt);
    if (rc == 0 && !ctx.get_cparams().no_perf) {
        access::n_p_eval(ctx) += (int32_t) prompt.n_tokens;
        access::t_p_eval_us(ctx) += ggml_time_us() - t0;
    }
    return rc;
}

int32_t llama_snapkv_prefill(llama_context * ctx, llama_seq_id seq_id, const llama_token * tokens, uint32_t n_tokens,
        llama_snapkv_progress_callback progress, void * user_data) {
    llama_snapkv * sk = llama_snapkv_of(ctx);
    if (!sk) {
        return -1;
    }
    llama_snapkv_error() = check_tokens(*ctx, seq_id, tokens, n_tokens, 0);
    if (!llama_snapkv_error().empty()) {
        llama_snapkv_set_error(llama_snapkv_error());
        return -1;
    }
    const int64_t t0 = ggml_time_us();

    ctx->synchronize();
    ctx->memory_update(false); // copies and shifts that wait, before their cells go
    ctx->get_memory()->seq_rm(seq_id, -1, -1);
    begin_stats(*ctx, *sk, n_tokens);

    llama_snapkv_prompt prompt;
    prompt.seq_id = seq_id;
    prompt.tokens = tokens;
    prompt.n_tokens = n_tokens;
    prompt.n_rows = llama_snapkv_n_rows(sk->params, n_tokens);
    prompt.n_rows_max = llama_snapkv_n_rows_max(sk->params, n_tokens);
    prompt.progress = progress;
    prompt.user_data = user_data;

    // the vault gets its rows from the staging cache
    const bool evicts = prompt.n_rows < n_tokens || (sk->params.vault && n_tokens > sk->params.window);
    const int32_t rc = evicts ? run_groups(*ctx, *sk, prompt) : prefill_ordinary(*ctx, *sk, seq_id, tokens, n_tokens, progress, user_data);

    sk->stats.seconds_prefill = (ggml_time_us() - t0) * 1e-6;
    sk->has_stats = rc == 0;
    return rc;
}

int32_t llama_snapkv_extend(llama_context * ctx, llama_seq_id seq_id, llama_pos pos0, const llama_token * tokens, uint32_t n_tokens,
        llama_snapkv_progress_callback progress, void * user_data) {
    llama_snapkv * sk = llama_snapkv_of(ctx);
    if (!sk) {
        return -1;
    }
    llama_snapkv_error() = pos0 < 0 ? "the position is negative" : check_tokens(*ctx, seq_id, tokens, n_tokens, (uint32_t) pos0);
    if (!llama_snapkv_error().empty()) {
        llama_snapkv_set_error(llama_snapkv_error());
        return -1;
    }
    const int64_t t0 = ggml_time_us();
    ctx->synchronize();
    ctx->memory_update(false);

    const auto mem = llama_snapkv_memory_of(*ctx);
    const auto record = mem.base->snapkv.get(seq_id);
    const uint32_t window = sk->params.window;
    const auto [cell0, n_cells] = llama_snapkv_cells_before(*mem.base, seq_id, pos0);
    const llama_pos end = mem.base->seq_pos_max(seq_id) + 1;
    std::string error;
    if (n_tokens < window) {
        error = format("%u tokens are fewer than the window's %u: begin at an earlier position", n_tokens, window);
    } else if (n_cells == 0 || pos0 > end) {
        error = format("sequence %d has no tokens side by side up to position %d: prefill it", seq_id, pos0);
    } else if (record && pos0 < record->pos_exact()) {
        error = format("position %d lies in the compacted prompt: begin at %d or later", pos0, record->pos_exact());
    } else if (record && std::any_of(record->layers.begin(), record->layers.end(), [&](const auto & l) { return l.n_kept != record->layers[0].n_kept; })) {
        error = "layers keep different numbers of rows: prefill the sequence";
    } else if (mem.iswa && mem.iswa->get_swa()->seq_pos_min(seq_id) > std::max<llama_pos>(0, pos0 - (llama_pos) ctx->get_model().hparams.n_swa)) {
        error = format("the cache of the sliding-window layers does not reach back from position %d: prefill the sequence", pos0);
    }
    if (!error.empty()) {
        llama_snapkv_set_error(error);
        return -1;
    }

    llama_snapkv_prompt prompt;
    prompt.seq_id = seq_id;
    prompt.tokens = tokens;
    prompt.n_tokens = n_tokens;
    prompt.pos0 = pos0;
    prompt.cell0 = cell0;
    prompt.n_cells = n_cells;
    // a ratio is of a prompt; what it left is the budget from then on
    const bool as_before = sk->params.budget == 0 && record;
    prompt.n_rows = as_before ? std::min(record->layers[0].n_kept + record->window, n_cells + n_tokens) : llama_snapkv_n_rows(sk->params, n_cells + n_tokens);
    prompt.n_rows_max = prompt.n_rows;
    prompt.progress = progress;
    prompt.user_data = user_data;

    begin_stats(*ctx, *sk, (uint32_t) pos0 + n_tokens);
    const int32_t rc = run_groups(*ctx, *sk, prompt);
    sk->stats.seconds_prefill = (ggml_time_us() - t0) * 1e-6;
    sk->has_stats = rc == 0;
    return rc;
}
