#include "snapkv.h"

#include "snapkv-access.h"
#include "snapkv-alloc.h"
#include "snapkv-context.h"
#include "snapkv-prefill.h"
#include "snapkv-runner.h"
#include "snapkv-staging.h"
#include "snapkv-support.h"

#include "llama-impl.h"

#include <algorithm>
#include <cmath>
#include <cstring>

using access = llama_snapkv_access;

static thread_local std::string last_error;

void llama_snapkv_set_error(const std::string & message) {
    last_error = message;
    LLAMA_LOG_ERROR("snapkv: %s\n", message.c_str());
}

const char * llama_snapkv_last_error(void) {
    return last_error.c_str();
}

//
// parameters
//

llama_snapkv_params llama_snapkv_default_params(void) {
    llama_snapkv_params params = {};
    params.size = sizeof(params);
    params.budget = 2048;
    params.ratio = 0.0f;
    params.window = 32;
    params.voters = 0;
    params.kernel = 21;
    params.pool = LLAMA_SNAPKV_POOL_TRIM;
    params.reduce = LLAMA_SNAPKV_REDUCE_MAX;
    params.own = 0.25f;
    params.sinks = 0;
    params.min_coverage = 0.0f;
    params.max_budget = 0;
    params.room = 1024;
    params.layer_group = 0;
    params.hidden = LLAMA_SNAPKV_HIDDEN_AUTO;
    params.chunk = 0;
    params.ops = LLAMA_SNAPKV_OPS_AUTO;
    params.keep_scores = false;
    params.queries = 0;
    params.vault = false;
    params.vault_limit = 0;
    return params;
}

std::string llama_snapkv_check_params(const llama_snapkv_params & params) {
    if (params.size != sizeof(llama_snapkv_params)) {
        return format("the caller's llama_snapkv_params has %zu bytes, the library's %zu: they are of different versions", params.size, sizeof(llama_snapkv_params));
    }
    if (params.window == 0) {
        return "window must be at least 1 token";
    }
    if (params.voters > params.window) {
        return format("voters %u are more than the window's %u rows", params.voters, params.window);
    }
    if (params.kernel % 2 == 0) {
        return format("kernel must be odd, not %u", params.kernel);
    }
    if (!(params.own >= 0.0f && std::isfinite(params.own))) {
        return format("own must be a number that is not negative, not %g", params.own);
    }
    if (params.budget == 0 && !(params.ratio > 0.0f && params.ratio <= 1.0f)) {
        return format("ratio must be in (0, 1], not %g", params.ratio);
    }
    if (params.budget > 0 && params.budget <= params.window + params.sinks) {
        return format("budget %u leaves no row to select: it must be more than window %u + sinks %u", params.budget, params.window, params.sinks);
    }
    if (!(params.min_coverage >= 0.0f && params.min_coverage <= 1.0f)) {
        return format("min_coverage must be in [0, 1], not %g", params.min_coverage);
    }
    if (params.min_coverage > 0.0f && (params.budget == 0 || params.max_budget < params.budget)) {
        return format("min_coverage needs a budget, and a max_budget that is not below it: not %u and %u", params.budget, params.max_budget);
    }
    if (params.room == 0) {
        return "room must be at least 1 cell";
    }
    return "";
}

uint32_t llama_snapkv_n_rows(const llama_snapkv_params & params, uint32_t n_prompt) {
    if (n_prompt <= params.window) {
        return n_prompt;
    }
    if (params.budget > 0) {
        return std::min(params.budget, n_prompt);
    }
    const uint32_t n_kept = (uint32_t) std::floor((double) params.ratio * (n_prompt - params.window));
    return std::min(std::max(n_kept, params.sinks) + params.window, n_prompt);
}

uint32_t llama_snapkv_n_rows_max(const llama_snapkv_params & params, uint32_t n_prompt) {
    const uint32_t n_rows = llama_snapkv_n_rows(params, n_prompt);
    return params.min_coverage > 0.0f && n_rows < n_prompt ? std::min(params.max_budget, n_prompt) : n_rows;
}

uint32_t llama_snapkv_n_voters(const llama_snapkv_params & params) {
    return params.voters > 0 ? params.voters : std::min(16u, params.window);
}

uint32_t llama_snapkv_n_queries(const llama_snapkv_params & params, uint32_t n_prompt) {
    return std::min(std::max(params.window, params.queries), n_prompt);
}

//
// cells
//

static thread_local uint32_t scope_n_cells = 0;
static thread_local bool scope_all = false;

llama_snapkv_cells_scope::llama_snapkv_cells_scope(uint32_t n_cells, bool all) {
    scope_n_cells = n_cells;
    scope_all = all;
}

llama_snapkv_cells_scope::~llama_snapkv_cells_scope() {
    scope_n_cells = 0;
    scope_all = false;
}

uint32_t llama_snapkv_n_cells(uint32_t kv_size, bool is_swa) {
    if (scope_n_cells == 0 || (is_swa && !scope_all)) {
        return kv_size;
    }
    return std::min(kv_size, scope_n_cells);
}

// cells of a stream. a unified cache has one stream for all sequences
static uint32_t cells_needed(const llama_model & model, const llama_snapkv_params & params, uint32_t n_ctx_seq, uint32_t n_seqs_per_stream) {
    // flash-attention kernels of GPUs want a multiple of 256 rows; the CPU's take any number
    const bool cpu_only = model.devices.empty();
    const uint64_t rows = llama_snapkv_n_rows_max(params, n_ctx_seq);
    return (uint32_t) GGML_PAD((rows + params.room) * n_seqs_per_stream, cpu_only ? 32 : LLAMA_SNAPKV_N_KV_PAD);
}

llama_kv_cache::slot_info llama_snapkv_free_cells(llama_kv_cache & base, llama_seq_id seq_id, uint32_t n_cells) {
    llama_batch_allocr allocr(1);
    llama_ubatch rows = allocr.ubatch_reserve(n_cells, 1);
    rows.seq_id_unq[0] = seq_id;
    for (uint32_t i = 0; i < n_cells; ++i) {
        rows.n_seq_id[i] = 1;
        rows.seq_id[i] = rows.seq_id_unq;
    }
    return base.find_slot(rows, true);
}

llama_kv_cache::slot_info llama_snapkv_cells_at(const llama_kv_cache & base, llama_seq_id seq_id, uint32_t cell0, uint32_t n_cells) {
    const uint32_t stream = base.get_stream(seq_id);
    llama_kv_cache::slot_info res = { stream, stream, {}, {} };
    if (cell0 + n_cells <= base.get_size()) {
        res.resize(1);
        res.strm[0] = stream;
        for (uint32_t i = 0; i < n_cells; ++i) {
            res.idxs[0].push_back(cell0 + i);
        }
    }
    return res;
}

void llama_snapkv_place_cells(llama_kv_cache & base, llama_seq_id seq_id, const llama_kv_cache::slot_info & target, llama_snapkv_record_ptr record) {
    auto & cells = access::v_cells(base)[target.strm[0]];
    const auto & idxs = target.idxs[0];
    for (size_t i = 0; i < idxs.size(); ++i) {
        cells.pos_set(idxs[i], (llama_pos) (record->n_prompt - idxs.size() + i));
        cells.seq_add(idxs[i], seq_id);
    }
    access::v_heads(base)[target.strm[0]] = idxs.back() + 1;
    base.snapkv.set(seq_id, std::move(record));
}

//
// context
//

bool llama_snapkv_supported(llama_model * model, llama_context_params cparams, llama_snapkv_params params) {
    if (!model) {
        llama_snapkv_set_error("model is NULL");
        return false;
    }
    try {
        last_error = llama_snapkv_check_support(*model, cparams, params);
    } catch (const std::exception & e) {
        last_error = e.what();
    }
    return last_error.empty();
}

llama_context * llama_snapkv_init_from_model(llama_model * model, llama_context_params cparams, llama_snapkv_params params) {
    if (!llama_snapkv_supported(model, cparams, params)) {
        llama_snapkv_set_error(last_error);
        return nullptr;
    }
    if (llama_snapkv_alloc_fails("cache")) {
        llama_snapkv_set_error("out of memory: the compact KV cache");
        return nullptr;
    }

    cparams.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    const uint32_t n_seq_max = std::max(1u, cparams.n_seq_max);
    const uint32_t n_ctx = cparams.n_ctx == 0 ? model->hparams.n_ctx_train : cparams.n_ctx;
    const uint32_t n_ctx_seq = cparams.kv_unified ? n_ctx : n_ctx / n_seq_max;

    llama_context * ctx = nullptr;
    {
        llama_snapkv_cells_scope scope(cells_needed(*model, params, n_ctx_seq, cparams.kv_unified ? n_seq_max : 1), false);
        ctx = llama_init_from_model(model, cparams);
    }
    if (!ctx) {
        llama_snapkv_set_error("llama.cpp could not make the context: out of memory, or see its log");
        return nullptr;
    }
    auto sk = std::make_shared<llama_snapkv>();
    sk->params = params;
    access::snapkv(*ctx) = std::move(sk);
    last_error.clear();
    return ctx;
}

bool llama_snapkv_enabled(const llama_context * ctx) {
    return ctx && access::snapkv(*ctx);
}

// null and last_error set if the context is not ours
static llama_snapkv * snapkv_of(const llama_context * ctx) {
    if (!llama_snapkv_enabled(ctx)) {
        llama_snapkv_set_error("the context was not made by llama_snapkv_init_from_model()");
        return nullptr;
    }
    return access::snapkv(*ctx).get();
}

static llama_snapkv_memory memory_of(const llama_context * ctx) {
    return llama_snapkv_memory_of(const_cast<llama_context &>(*ctx));
}

static uint32_t seqs_per_stream(const llama_context & ctx) {
    return ctx.get_cparams().kv_unified ? ctx.get_cparams().n_seq_max : 1;
}

bool llama_snapkv_set_protected(llama_context * ctx, const llama_pos * spans, uint32_t n_spans) {
    llama_snapkv * sk = snapkv_of(ctx);
    if (!sk) {
        return false;
    }
    std::vector<std::pair<llama_pos, llama_pos>> found;
    for (uint32_t i = 0; i < n_spans; ++i) {
        found.emplace_back(spans[2 * i], spans[2 * i + 1]);
        if (found.back().first < 0 || found.back().second < found.back().first) {
            llama_snapkv_set_error(format("protected span [%d, %d) is no range of positions", found.back().first, found.back().second));
            return false;
        }
    }
    sk->protected_spans = std::move(found);
    return true;
}

bool llama_snapkv_set_question(llama_context * ctx, uint32_t n_tokens, uint32_t n_after) {
    llama_snapkv * sk = snapkv_of(ctx);
    if (!sk) {
        return false;
    }
    sk->n_question = n_tokens;
    sk->n_after_question = n_after;
    return true;
}

bool llama_snapkv_set_params(llama_context * ctx, llama_snapkv_params params) {
    llama_snapkv * sk = snapkv_of(ctx);
    if (!sk) {
        return false;
    }
    std::string error = llama_snapkv_check_params(params);
    const uint32_t needed = error.empty() ? cells_needed(ctx->get_model(), params, ctx->n_ctx_seq(), seqs_per_stream(*ctx)) : 0;
    const uint32_t have = memory_of(ctx).base->get_size();
    if (error.empty() && std::min(needed, ctx->n_ctx_seq()) > have) {
        error = format("budget and room need %u cells and the context has %u: make a new context", needed, have);
    }
    if (!error.empty()) {
        llama_snapkv_set_error(error);
        return false;
    }
    sk->params = params;
    return true;
}

//
// prefill
//

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
        rc = llama_decode(&ctx, batch);
        ctx.synchronize();
        if (rc == 0 && progress && !progress(p + batch.n_tokens, n_tokens, user_data)) {
            rc = 2;
        }
    }
    llama_batch_free(batch);

    if (rc != 0) {
        ctx.get_memory()->seq_rm(seq_id, -1, -1);
        llama_snapkv_set_error(
                rc == 1 ? format("no free cells for a prompt of %u tokens: remove other sequences first", n_tokens) : rc == 2 ? "the prefill was aborted"
                                                                                                                              : format("llama_decode() failed with %d", rc));
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
    llama_snapkv * sk = snapkv_of(ctx);
    if (!sk) {
        return -1;
    }
    last_error = check_tokens(*ctx, seq_id, tokens, n_tokens, 0);
    if (!last_error.empty()) {
        llama_snapkv_set_error(last_error);
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

// cells of a sequence before a position, if they lie side by side and in the order of their positions; else none
static std::pair<uint32_t, uint32_t> cells_before(const llama_kv_cache & base, llama_seq_id seq_id, llama_pos pos) {
    const auto & cells = base.get_cells(seq_id);
    uint32_t first = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < cells.size(); ++i) {
        if (cells.is_empty(i) || !cells.seq_has(i, seq_id) || cells.pos_get(i) >= pos) {
            continue;
        }
        first = n == 0 ? i : first;
        if (i != first + n || (n > 0 && cells.pos_get(i) != cells.pos_get(i - 1) + 1)) {
            return { 0, 0 };
        }
        ++n;
    }
    return { first, n };
}

int32_t llama_snapkv_extend(llama_context * ctx, llama_seq_id seq_id, llama_pos pos0, const llama_token * tokens, uint32_t n_tokens,
        llama_snapkv_progress_callback progress, void * user_data) {
    llama_snapkv * sk = snapkv_of(ctx);
    if (!sk) {
        return -1;
    }
    last_error = pos0 < 0 ? "the position is negative" : check_tokens(*ctx, seq_id, tokens, n_tokens, (uint32_t) pos0);
    if (!last_error.empty()) {
        llama_snapkv_set_error(last_error);
        return -1;
    }
    const int64_t t0 = ggml_time_us();
    ctx->synchronize();
    ctx->memory_update(false);

    const auto mem = memory_of(ctx);
    const auto record = mem.base->snapkv.get(seq_id);
    const uint32_t window = sk->params.window;
    const auto [cell0, n_cells] = cells_before(*mem.base, seq_id, pos0);
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

//
// logits
//

float * llama_snapkv_reserve_logits(llama_context & ctx) {
    if (access::output_reserve(ctx, 1) < 1) {
        throw std::runtime_error("out of memory: the logits");
    }
    return access::logits(ctx).data;
}

void llama_snapkv_show_logits(llama_context & ctx) {
    access::output_swaps(ctx).clear();
    access::output_ids(ctx)[0] = 0;
    access::n_outputs(ctx) = 1;
}

bool llama_snapkv_set_logits(llama_context * ctx, const float * logits) {
    if (!snapkv_of(ctx)) {
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

//
// what it did
//

bool llama_snapkv_get_stats(const llama_context * ctx, llama_snapkv_stats * stats) {
    const llama_snapkv * sk = snapkv_of(ctx);
    if (!sk) {
        return false;
    }
    if (stats->size != sizeof(*stats)) {
        llama_snapkv_set_error("the caller's llama_snapkv_stats is of another version");
        return false;
    }
    if (!sk->has_stats) {
        llama_snapkv_set_error("no prefill has ended well yet");
        return false;
    }
    *stats = sk->stats;
    return true;
}

bool llama_snapkv_get_seq_info(const llama_context * ctx, llama_seq_id seq_id, llama_snapkv_seq_info * info) {
    if (!snapkv_of(ctx)) {
        return false;
    }
    if (info->size != sizeof(*info) || seq_id < 0 || (uint32_t) seq_id >= ctx->n_seq_max()) {
        llama_snapkv_set_error("the caller's llama_snapkv_seq_info is of another version, or the sequence id is out of range");
        return false;
    }
    const auto mem = memory_of(ctx);
    llama_kv_cache & base = *mem.base;
    const auto & cells = base.get_cells(seq_id);
    const auto record = base.snapkv.get(seq_id);

    const size_t size = info->size;
    *info = {};
    info->size = size;
    info->pos_swa = mem.iswa ? mem.iswa->get_swa()->seq_pos_min(seq_id) : 0;
    info->n_cells = cells.size();
    info->n_free = cells.size() - cells.get_used();
    if (record) {
        info->compacted = true;
        info->n_prompt = record->n_prompt;
        info->pos_exact = record->pos_exact();
        info->n_kept = record->window + (record->layers.empty() ? 0 : record->layers[0].n_kept);
    }
    return true;
}

uint32_t llama_snapkv_n_layer(const llama_context * ctx) {
    return snapkv_of(ctx) ? (uint32_t) access::layers(*memory_of(ctx).base).size() : 0;
}

int32_t llama_snapkv_layer_id(const llama_context * ctx, uint32_t ic) {
    return ic < llama_snapkv_n_layer(ctx) ? (int32_t) access::layers(*memory_of(ctx).base)[ic].il : -1;
}

uint32_t llama_snapkv_n_head_kv(const llama_context * ctx, uint32_t ic) {
    const int32_t il = llama_snapkv_layer_id(ctx, ic);
    return il < 0 ? 0 : ctx->get_model().hparams.n_head_kv(il);
}

uint64_t llama_snapkv_row_bytes(const llama_context * ctx) {
    return snapkv_of(ctx) ? llama_snapkv_full_bytes(*memory_of(ctx).base, 1) : 0;
}

uint32_t llama_snapkv_kept(const llama_context * ctx, llama_seq_id seq_id, uint32_t ic, uint32_t head, int32_t * ids, uint32_t n) {
    if (!snapkv_of(ctx)) {
        return 0;
    }
    const auto record = memory_of(ctx).base->snapkv.get(seq_id);
    if (!record || ic >= record->layers.size() || head >= record->layers[ic].n_head_kv) {
        llama_snapkv_set_error(record ? "no such cached layer or KV head" : "the sequence is not compacted");
        return 0;
    }
    const auto & layer = record->layers[ic];
    if (ids) {
        std::copy_n(layer.ids.begin() + (size_t) head * layer.n_kept, std::min(n, layer.n_kept), ids);
    }
    return layer.n_kept;
}

uint32_t llama_snapkv_scores(const llama_context * ctx, uint32_t ic, uint32_t head, float * scores, uint32_t n) {
    const llama_snapkv * sk = snapkv_of(ctx);
    if (!sk) {
        return 0;
    }
    if (ic >= sk->scores.size() || head >= sk->scores[ic].size()) {
        llama_snapkv_set_error("no scores: set keep_scores, and evict with the last prefill; or no such cached layer or KV head");
        return 0;
    }
    const auto & values = sk->scores[ic][head];
    if (scores) {
        std::copy_n(values.begin(), std::min<size_t>(n, values.size()), scores);
    }
    return (uint32_t) values.size();
}

float llama_snapkv_coverage(const llama_context * ctx, uint32_t ic, uint32_t head) {
    const llama_snapkv * sk = snapkv_of(ctx);
    if (!sk) {
        return -1.0f;
    }
    if (ic >= sk->coverage.size() || head >= sk->coverage[ic].size()) {
        llama_snapkv_set_error("no coverage: the last prefill has evicted nothing, or there is no such cached layer or KV head");
        return -1.0f;
    }
    return sk->coverage[ic][head];
}

void llama_snapkv_set_tap(llama_context * ctx, llama_snapkv_tap_callback tap, void * user_data) {
    if (llama_snapkv * sk = snapkv_of(ctx)) {
        sk->tap = tap;
        sk->tap_data = user_data;
    }
}
