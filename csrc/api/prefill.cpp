// The prefill, for the outside: a prompt, or what goes on from one.
#include "snapkv.h"

#include "graph/runner.h"
#include "prefill/others.h"
#include "prefill/prefill.h"
#include "recall/recall.h"
#include "staging/staging.h"
#include "state/cells.h"
#include "state/context.h"
#include "state/lock.h"
#include "state/params.h"
#include "state/recurrent.h"
#include "state/task.h"
#include "upstream/access.h"

#include "llama-impl.h"
#include "llama-memory-recurrent.h"

#include <algorithm>
#include <tuple>

using access = llama_snapkv_access;

llama_snapkv_prompt llama_snapkv_default_prompt(llama_seq_id seq_id, const llama_token * tokens, uint32_t n_tokens) {
    llama_snapkv_prompt prompt = {};
    prompt.size = sizeof(prompt);
    prompt.seq_id = seq_id;
    prompt.tokens = tokens;
    prompt.n_tokens = n_tokens;
    return prompt;
}

// a prompt that needs no eviction
static int32_t prefill_ordinary(llama_context & ctx, llama_snapkv & sk, const llama_snapkv_prompt & prompt) {
    const uint32_t n_tokens = prompt.n_tokens;
    llama_batch batch = llama_batch_init((int32_t) ctx.n_batch(), 0, 1);
    int32_t rc = 0;
    for (uint32_t p = 0; p < n_tokens && rc == 0; p += batch.n_tokens) {
        batch.n_tokens = (int32_t) std::min(ctx.n_batch(), n_tokens - p);
        for (int32_t i = 0; i < batch.n_tokens; ++i) {
            batch.token[i] = prompt.tokens[p + i];
            batch.pos[i] = (llama_pos) (p + i);
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = prompt.seq_id;
            batch.logits[i] = p + i + 1 == n_tokens;
        }
        rc = llama_snapkv_decode(&ctx, batch);
        ctx.synchronize();
        if (rc == 0 && prompt.progress) {
            const llama_snapkv_lock lock(ctx, prompt.seq_id, /*all =*/true);
            rc = prompt.progress(p + batch.n_tokens, n_tokens, prompt.progress_data) ? 0 : 2;
        }
        if (rc == 0 && prompt.on_yield && p + batch.n_tokens < n_tokens) {
            rc = llama_snapkv_call_on_yield(ctx, sk, prompt) ? 0 : 2;
        }
    }
    llama_batch_free(batch);

    if (rc != 0) {
        ctx.get_memory()->seq_rm(prompt.seq_id, -1, -1);
        if (rc > 0) {
            llama_snapkv_set_error(rc == 1 ? format("no free cells for a prompt of %u tokens: remove other sequences first", n_tokens) : "the prefill was aborted");
        }
        return rc;
    }
    if (llama_snapkv_memory_of(ctx).recr && !llama_snapkv_keep_state(&ctx, prompt.seq_id, true)) {
        ctx.get_memory()->seq_rm(prompt.seq_id, -1, -1);
        return -2;
    }
    sk.stats.n_kept = n_tokens;
    sk.stats.coverage = 1.0;
    sk.stats.bytes_compute = llama_snapkv_compute_bytes(ctx);
    return 0;
}

static bool is_range(llama_snapkv_span span) {
    return span.begin >= 0 && span.begin <= span.end;
}

// "" or what is wrong with a prompt whose first token is to be at pos0
static std::string check_prompt(const llama_context & ctx, const llama_snapkv_prompt * prompt, llama_pos pos0) {
    if (!prompt) {
        return "the prompt is NULL";
    }
    if (prompt->size != sizeof(*prompt)) {
        return format("the caller's llama_snapkv_prompt has %zu bytes, the library's %zu: they are of different versions", prompt->size, sizeof(*prompt));
    }
    if (!prompt->tokens || prompt->n_tokens == 0) {
        return "the prompt is empty";
    }
    if (pos0 < 0) {
        return format("position %d is negative", pos0);
    }
    const uint64_t end = (uint64_t) pos0 + prompt->n_tokens;
    if (end > ctx.n_ctx_seq()) {
        return format("the prompt has %llu tokens and the context %u: make it larger (n_ctx) or the prompt shorter", (unsigned long long) end, ctx.n_ctx_seq());
    }
    const std::string error = llama_snapkv_check_position(ctx.get_model(), (int64_t) end - 1);
    if (!error.empty()) {
        return error;
    }
    if (prompt->seq_id < 0 || (uint32_t) prompt->seq_id >= ctx.n_seq_max()) {
        return format("sequence id %d is not in [0, %u)", prompt->seq_id, ctx.n_seq_max());
    }
    if (prompt->n_protected > 0 && !prompt->protected_spans) {
        return format("protected_spans is NULL, and n_protected %u", prompt->n_protected);
    }
    for (uint32_t i = 0; i < prompt->n_protected; ++i) {
        const auto & span = prompt->protected_spans[i];
        if (!is_range(span)) {
            return format("protected span [%d, %d) is not a range of positions", span.begin, span.end);
        }
    }
    const auto & question = prompt->question;
    if (!is_range(question) || (uint64_t) question.end > end) {
        return format("question [%d, %d) is not a range of positions of the prompt, which ends at %llu", question.begin, question.end, (unsigned long long) end);
    }
    return "";
}

// "" is no failure
static bool refuses(const std::string & error) {
    llama_snapkv_error().clear();
    if (!error.empty()) {
        llama_snapkv_set_error(error);
    }
    return !error.empty();
}

// what was counted for the last prefill is forgotten
static void begin_stats(llama_context & ctx, llama_snapkv & sk, uint32_t n_prompt) {
    const auto mem = llama_snapkv_memory_of(ctx);
    sk.has_stats = false;
    sk.seconds_others = 0.0;
    sk.scores.clear();
    sk.coverage.clear();
    sk.selected.clear();
    sk.stats = {};
    sk.stats.size = sizeof(sk.stats);
    sk.stats.n_prompt = n_prompt;
    sk.stats.n_ubatch = ctx.n_ubatch();
    sk.stats.n_layer_all = ctx.get_model().hparams.n_layer();
    sk.stats.layer_work = 1.0;
    for (const auto & [_, size] : ctx.get_memory()->memory_breakdown()) {
        sk.stats.bytes_kv += size;
    }
    sk.stats.bytes_kv_full = llama_snapkv_full_bytes(*mem.base, GGML_PAD(n_prompt, LLAMA_SNAPKV_N_KV_PAD));
    if (mem.iswa) {
        for (const auto & [_, size] : mem.iswa->get_swa()->memory_breakdown()) {
            sk.stats.bytes_kv_full += size;
        }
    }
    if (mem.recr) {
        for (const auto & [_, size] : mem.recr->memory_breakdown()) {
            sk.stats.bytes_recurrent += size;
        }
        sk.stats.bytes_kv_full += sk.stats.bytes_recurrent;
    }
}

// of a prefill that has ended well, or not
static void end_stats(llama_context & ctx, llama_snapkv & sk, llama_seq_id seq_id, int64_t t0, bool ok) {
    sk.stats.bytes_state = llama_snapkv_kept_bytes(sk, llama_snapkv_memory_of(ctx), seq_id);
    sk.stats.seconds_prefill = (ggml_time_us() - t0) * 1e-6 - sk.seconds_others;
    sk.has_stats = ok;
}

static int32_t run_groups(llama_context & ctx, llama_snapkv & sk, const llama_snapkv_task & task) {
    const int64_t t0 = ggml_time_us();
    const int32_t rc = llama_snapkv_prefill_groups(ctx, sk, task);
    if (rc == 0 && !ctx.get_cparams().no_perf) {
        access::n_p_eval(ctx) += (int32_t) task.prompt.n_tokens;
        access::t_p_eval_us(ctx) += ggml_time_us() - t0;
    }
    return rc;
}

int32_t llama_snapkv_prefill(llama_context * ctx, const llama_snapkv_prompt * prompt) {
    llama_snapkv * sk = llama_snapkv_of(ctx);
    if (!sk || llama_snapkv_refuses(*ctx, -1) || refuses(check_prompt(*ctx, prompt, 0))) {
        return -1;
    }
    if (prompt->tap && sk->params.prefill == LLAMA_SNAPKV_PREFILL_SELECTIVE) {
        llama_snapkv_set_error("a tap is shown all rows of a layer, and after a selection later layers have some of them: set prefill to exact, or leave the tap out");
        return -1;
    }
    const auto * swa = llama_snapkv_memory_of(*ctx).iswa;
    if (prompt->on_yield && sk->params.prefill == LLAMA_SNAPKV_PREFILL_SELECTIVE && swa && ctx->get_cparams().kv_unified && ctx->n_seq_max() > 1) {
        llama_snapkv_set_error("a selective prefill moves rows between cells of sliding-window layers, which other sequences share here: let them wait (no on_yield), or set kv_unified to false");
        return -1;
    }
    const int64_t t0 = ggml_time_us();

    ctx->synchronize();
    ctx->memory_update(false); // copies and shifts that wait, before their cells go
    ctx->get_memory()->seq_rm(prompt->seq_id, -1, -1);
    llama_snapkv_recall_begin(*ctx, *sk, *prompt);
    begin_stats(*ctx, *sk, prompt->n_tokens);

    llama_snapkv_task task = { *prompt, sk->params.window_size };
    task.n_kept = llama_snapkv_n_rows(sk->params, prompt->n_tokens);
    task.n_kept_max = llama_snapkv_n_rows_max(sk->params, prompt->n_tokens);

    // the vault gets its rows from the staging cache
    const bool evicts = task.n_kept < prompt->n_tokens || (sk->params.vault && prompt->n_tokens > sk->params.window_size);
    const int32_t rc = evicts ? run_groups(*ctx, *sk, task) : prefill_ordinary(*ctx, *sk, *prompt);

    if (rc == 0) {
        sk->of_vault[prompt->seq_id] = llama_snapkv_memory_of(*ctx).base->snapkv.get(prompt->seq_id);
    }
    end_stats(*ctx, *sk, prompt->seq_id, t0, rc == 0);
    return rc;
}

// "" or why evaluation cannot go on from there
static std::string check_extension(const llama_context & ctx, const llama_snapkv_task & task, const llama_snapkv_memory & mem) {
    const llama_seq_id seq_id = task.prompt.seq_id;
    const auto record = mem.base->snapkv.get(seq_id);
    if (task.prompt.n_tokens < task.window) {
        return format("%u tokens are fewer than the window's %u: begin at an earlier position", task.prompt.n_tokens, task.window);
    }
    if (task.n_cells == 0 || task.pos0 > mem.base->seq_pos_max(seq_id) + 1) {
        return format("sequence %d has no tokens side by side up to position %d: prefill it", seq_id, task.pos0);
    }
    if (mem.recr && task.pos0 <= mem.base->seq_pos_max(seq_id)) {
        return format("recurrent layers have gone on from position %d: go back to a state that was kept there, or prefill the sequence", task.pos0);
    }
    if (record && task.pos0 < record->pos_exact()) {
        return format("position %d lies in the compacted prompt: begin at %d or later", task.pos0, record->pos_exact());
    }
    if (record && std::any_of(record->layers.begin(), record->layers.end(), [&](const auto & l) { return l.n_kept != record->layers[0].n_kept; })) {
        return "layers keep different numbers of rows: prefill the sequence";
    }
    if (mem.iswa && mem.iswa->get_swa()->seq_pos_min(seq_id) > std::max<llama_pos>(0, task.pos0 - (llama_pos) ctx.get_model().hparams.n_swa)) {
        return format("the cache of the sliding-window layers does not reach back from position %d: prefill the sequence", task.pos0);
    }
    return "";
}

int32_t llama_snapkv_extend(llama_context * ctx, llama_pos pos0, const llama_snapkv_prompt * prompt) {
    llama_snapkv * sk = llama_snapkv_of(ctx);
    if (!sk || llama_snapkv_refuses(*ctx, -1) || refuses(check_prompt(*ctx, prompt, pos0))) {
        return -1;
    }
    const int64_t t0 = ggml_time_us();
    ctx->synchronize();
    ctx->memory_update(false);

    const auto mem = llama_snapkv_memory_of(*ctx);
    llama_snapkv_task task = { *prompt, sk->params.window_size };
    task.pos0 = pos0;
    std::tie(task.cell0, task.n_cells) = llama_snapkv_cells_before(*mem.base, prompt->seq_id, pos0);
    if (refuses(check_extension(*ctx, task, mem))) {
        return -1;
    }

    // a ratio is of a prompt; what it left is the budget from then on
    const auto record = mem.base->snapkv.get(prompt->seq_id);
    const uint32_t n = task.n_rows();
    const bool as_before = sk->params.budget == 0 && record;
    task.n_kept = as_before ? std::min(record->layers[0].n_kept + record->window, n) : llama_snapkv_n_rows(sk->params, n);
    task.n_kept_max = task.n_kept;

    begin_stats(*ctx, *sk, (uint32_t) task.end());
    const int32_t rc = run_groups(*ctx, *sk, task);
    end_stats(*ctx, *sk, prompt->seq_id, t0, rc == 0);
    return rc;
}
