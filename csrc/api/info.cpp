// What the last prefill did, and what a sequence holds, for the outside.
#include "snapkv.h"

#include "recall/recall.h"
#include "staging/staging.h"
#include "state/context.h"
#include "upstream/access.h"

#include "llama-kv-cache-iswa.h"

#include <algorithm>

using access = llama_snapkv_access;

static llama_snapkv_memory memory_of(const llama_context * ctx) {
    return llama_snapkv_memory_of(const_cast<llama_context &>(*ctx));
}

bool llama_snapkv_get_stats(const llama_context * ctx, llama_snapkv_stats * stats) {
    const llama_snapkv * sk = llama_snapkv_of(ctx);
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
    if (!llama_snapkv_of(ctx)) {
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
    return llama_snapkv_of(ctx) ? (uint32_t) access::layers(*memory_of(ctx).base).size() : 0;
}

int32_t llama_snapkv_layer_id(const llama_context * ctx, uint32_t ic) {
    return ic < llama_snapkv_n_layer(ctx) ? (int32_t) access::layers(*memory_of(ctx).base)[ic].il : -1;
}

uint32_t llama_snapkv_n_head_kv(const llama_context * ctx, uint32_t ic) {
    const int32_t il = llama_snapkv_layer_id(ctx, ic);
    return il < 0 ? 0 : ctx->get_model().hparams.n_head_kv(il);
}

uint64_t llama_snapkv_row_bytes(const llama_context * ctx) {
    return llama_snapkv_of(ctx) ? llama_snapkv_full_bytes(*memory_of(ctx).base, 1) : 0;
}

uint32_t llama_snapkv_kept(const llama_context * ctx, llama_seq_id seq_id, uint32_t ic, uint32_t head, int32_t * ids, uint32_t n) {
    if (!llama_snapkv_of(ctx)) {
        return 0;
    }
    const auto record = memory_of(ctx).base->snapkv.get(seq_id);
    if (!record || ic >= record->layers.size() || head >= record->layers[ic].n_head_kv) {
        llama_snapkv_set_error(record ? "no such cached layer or KV head" : "the sequence is not compacted");
        return 0;
    }
    const auto & layer = record->layers[ic];
    if (ids) {
        const auto first = layer.ids.begin() + (size_t) head * layer.n_kept;
        std::vector<int32_t> sorted(first, first + layer.n_kept); // a recall puts rows where others have been
        std::sort(sorted.begin(), sorted.end());
        std::copy_n(sorted.begin(), std::min(n, layer.n_kept), ids);
    }
    return layer.n_kept;
}

uint32_t llama_snapkv_recalls(const llama_context * ctx, llama_seq_id seq_id, llama_snapkv_recall_event * events, uint32_t n) {
    const llama_snapkv * sk = llama_snapkv_of(ctx);
    if (!sk || !sk->recalls.count(seq_id)) {
        return 0;
    }
    const auto & all = sk->recalls.at(seq_id)->events;
    if (events) {
        std::copy_n(all.begin(), std::min<size_t>(n, all.size()), events);
    }
    return (uint32_t) all.size();
}

uint32_t llama_snapkv_scores(const llama_context * ctx, uint32_t ic, uint32_t head, float * scores, uint32_t n) {
    const llama_snapkv * sk = llama_snapkv_of(ctx);
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

uint32_t llama_snapkv_selected(const llama_context * ctx, int32_t * ids, uint32_t n) {
    const llama_snapkv * sk = llama_snapkv_of(ctx);
    if (!sk) {
        return 0;
    }
    if (ids) {
        std::copy_n(sk->selected.begin(), std::min<size_t>(n, sk->selected.size()), ids);
    }
    return (uint32_t) sk->selected.size();
}

float llama_snapkv_coverage(const llama_context * ctx, uint32_t ic, uint32_t head) {
    const llama_snapkv * sk = llama_snapkv_of(ctx);
    if (!sk) {
        return -1.0f;
    }
    if (ic >= sk->coverage.size() || head >= sk->coverage[ic].size()) {
        llama_snapkv_set_error("no coverage: the last prefill has evicted nothing, or there is no such cached layer or KV head");
        return -1.0f;
    }
    return sk->coverage[ic][head];
}
