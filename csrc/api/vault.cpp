// The vault, for the outside: what it holds, and what is put into it.
#include "snapkv.h"

#include "prefill/tail.h"
#include "recall/recall.h"
#include "state/context.h"
#include "state/lock.h"
#include "upstream/access.h"

#include "llama-impl.h"

#include <cstring>

using access = llama_snapkv_access;

bool llama_snapkv_get_vault_info(const llama_context * ctx, llama_seq_id seq_id, uint32_t ic, llama_snapkv_vault_info * info) {
    const auto * vault = llama_snapkv_vault_of(ctx, seq_id);
    if (!vault) {
        return false;
    }
    if (info->size != sizeof(*info) || ic >= vault->layers.size()) {
        llama_snapkv_set_error("the caller's llama_snapkv_vault_info is of another version, or there is no such cached layer");
        return false;
    }
    const auto & layer = vault->layers[ic];
    *info = {};
    info->size = sizeof(*info);
    info->n_tokens = vault->n_tokens();
    info->n_queries = vault->n_queries();
    info->n_head = (uint32_t) layer.n_head;
    info->n_head_kv = (uint32_t) layer.n_head_kv;
    info->head_dim = (uint32_t) layer.head_dim_k;
    info->head_dim_v = (uint32_t) layer.head_dim_v;
    info->row_bytes_k = (uint32_t) layer.row_k;
    info->row_bytes_v = (uint32_t) layer.row_v;
    info->scale = layer.scale;
    info->softcap = layer.softcap;
    return true;
}

static void to_f32(ggml_type type, const uint8_t * from, float * to, int64_t n) {
    if (type == GGML_TYPE_F32) {
        memcpy(to, from, n * sizeof(float));
    } else {
        ggml_get_type_traits(type)->to_float(from, to, n);
    }
}

bool llama_snapkv_vault_read(const llama_context * ctx, llama_seq_id seq_id, uint32_t ic, float * q, float * k, float * v) {
    const auto * vault = llama_snapkv_vault_of(ctx, seq_id);
    if (!vault) {
        return false;
    }
    if (ic >= vault->layers.size()) {
        llama_snapkv_set_error("no such cached layer");
        return false;
    }
    const auto & layer = vault->layers[ic];
    const uint32_t n = vault->n_tokens();
    if (q) {
        vault->read_queries(ic, q);
    }
    for (const bool is_v : { false, true }) {
        float * out = is_v ? v : k;
        if (!out) {
            continue;
        }
        const ggml_type type = is_v ? layer.type_v : layer.type_k;
        const int64_t head_dim = is_v ? layer.head_dim_v : layer.head_dim_k;
        const bool in_v = is_v && layer.row_v > 0;
        const size_t row = in_v ? layer.row_v : layer.row_k;
        const size_t head = row / layer.n_head_kv;
        vault->each(in_v, ic, 0, n, [&](const uint8_t * data, uint32_t pos, uint32_t n_rows) {
            for (uint32_t i = 0; i < n_rows; ++i) {
                for (int64_t h = 0; h < layer.n_head_kv; ++h) {
                    to_f32(type, data + i * row + h * head, out + (h * n + pos + i) * head_dim, head_dim);
                }
            }
        });
    }
    return true;
}

void llama_snapkv_vault_clear(llama_context * ctx, llama_seq_id seq_id) {
    if (llama_snapkv_enabled(ctx) && !llama_snapkv_refuses(*ctx, seq_id)) {
        access::snapkv(*ctx)->recalls.erase(seq_id); // before what they take rows from
        access::snapkv(*ctx)->vaults.erase(seq_id);
    }
}

uint32_t llama_snapkv_vault_n_segments(const llama_context * ctx, llama_seq_id seq_id) {
    if (!llama_snapkv_enabled(ctx)) {
        return 0;
    }
    const auto & vaults = access::snapkv(*ctx)->vaults;
    const auto it = vaults.find(seq_id);
    return it == vaults.end() ? 0 : (uint32_t) it->second.get_segments().size();
}

bool llama_snapkv_vault_get_segment(const llama_context * ctx, llama_seq_id seq_id, uint32_t i, llama_snapkv_vault_segment * segment) {
    const auto * vault = llama_snapkv_vault_of(ctx, seq_id);
    if (!vault) {
        return false;
    }
    if (segment->size != sizeof(*segment) || i >= vault->get_segments().size()) {
        llama_snapkv_set_error("the caller's llama_snapkv_vault_segment is of another version, or there is no such segment");
        return false;
    }
    const auto & seg = vault->get_segments()[i];
    *segment = {};
    segment->size = sizeof(*segment);
    segment->pos0 = seg.pos0;
    segment->n_tokens = seg.n_rows;
    segment->tokens = vault->get_tokens().data() + seg.pos0;
    segment->k = (const void * const *) seg.k.data();
    segment->v = (const void * const *) seg.v.data();
    const auto mem = llama_snapkv_memory_of(const_cast<llama_context &>(*ctx));
    // rows before an end that is gone are before no end
    if (mem.iswa && seg.n_rows == seg.capacity) {
        segment->swa = seg.swa.data;
        segment->swa_bytes = llama_snapkv_tail_bytes(*mem.iswa->get_swa(), seg.swa.n_rows);
        segment->n_swa_rows = seg.swa.n_rows;
    }
    return true;
}

bool llama_snapkv_vault_attach(llama_context * ctx, llama_seq_id seq_id, const llama_snapkv_vault_segment * segment) {
    if (!llama_snapkv_of(ctx) || llama_snapkv_refuses(*ctx, seq_id)) {
        return false;
    }
    auto & sk = *llama_snapkv_of(ctx);
    if (segment->size != sizeof(*segment) || seq_id < 0 || (uint32_t) seq_id >= ctx->n_seq_max()) {
        llama_snapkv_set_error("the caller's llama_snapkv_vault_segment is of another version, or the sequence id is out of range");
        return false;
    }
    if (!sk.params.vault) {
        llama_snapkv_set_error("the context keeps no vault: set it in the parameters");
        return false;
    }
    const auto it = sk.vaults.find(seq_id);
    const uint32_t n_before = it == sk.vaults.end() ? 0 : it->second.n_tokens();
    if (segment->pos0 != n_before || segment->n_tokens == 0 || (uint64_t) segment->pos0 + segment->n_tokens > ctx->n_ctx_seq()) {
        llama_snapkv_set_error(format("a segment of %u tokens at position %u does not go on from the vault's %u tokens in a context of %u", segment->n_tokens, segment->pos0,
                n_before, ctx->n_ctx_seq()));
        return false;
    }
    const auto mem = llama_snapkv_memory_of(*ctx);
    const uint64_t swa_bytes = mem.iswa ? llama_snapkv_tail_bytes(*mem.iswa->get_swa(), segment->n_swa_rows) : 0;
    if (segment->swa_bytes != swa_bytes || segment->n_swa_rows > segment->pos0 + segment->n_tokens) {
        llama_snapkv_set_error("the rows of sliding-window layers are not this model's");
        return false;
    }

    llama_snapkv_recall_settle(sk, seq_id);
    auto & vault = sk.vaults[seq_id];
    if (vault.layers.empty()) {
        vault.layers = llama_snapkv_vault_layers(*ctx);
    }
    llama_snapkv_vault::segment seg;
    seg.pos0 = segment->pos0;
    seg.n_rows = segment->n_tokens;
    seg.capacity = segment->n_tokens;
    seg.query0 = segment->pos0 + segment->n_tokens;
    seg.q.resize(vault.layers.size());
    for (size_t ic = 0; ic < vault.layers.size(); ++ic) {
        seg.k.push_back((uint8_t *) const_cast<void *>(segment->k[ic]));
        seg.v.push_back((uint8_t *) const_cast<void *>(segment->v[ic]));
    }
    seg.swa.pos0 = segment->pos0 + segment->n_tokens - segment->n_swa_rows;
    seg.swa.n_rows = segment->n_swa_rows;
    seg.swa.capacity = segment->n_swa_rows;
    seg.swa.data = (const uint8_t *) segment->swa;
    vault.append(std::move(seg), segment->tokens);
    return true;
}
