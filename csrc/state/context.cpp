#include "state/context.h"

#include "upstream/access.h"

#include "llama-impl.h"
#include "llama-memory-hybrid.h"

#include <algorithm>
#include <typeinfo>

using access = llama_snapkv_access;

std::string & llama_snapkv_error() {
    static thread_local std::string error;
    return error;
}

std::string llama_snapkv_check_position(const llama_model & model, int64_t pos) {
    const uint32_t n = llama_snapkv_n_positions(&model);
    if (n == 0 || (pos >= 0 && pos < n)) {
        return "";
    }
    return format("the model has learned embeddings of %u positions, and %lld is not one of them: make the prompt or its answer shorter, and the context (n_ctx) %u or less", n,
            (long long) pos, n);
}

void llama_snapkv_set_error(const std::string & message) {
    llama_snapkv_error() = message;
    LLAMA_LOG_ERROR("snapkv: %s\n", message.c_str());
}

const char * llama_snapkv_last_error(void) {
    return llama_snapkv_error().c_str();
}

bool llama_snapkv_enabled(const llama_context * ctx) {
    return ctx && access::snapkv(*ctx);
}

llama_snapkv * llama_snapkv_of(const llama_context * ctx) {
    if (!llama_snapkv_enabled(ctx)) {
        llama_snapkv_set_error("the context was not made by llama_snapkv_init_from_model()");
        return nullptr;
    }
    return access::snapkv(*ctx).get();
}

llama_snapkv_memory llama_snapkv_memory_of(llama_context & ctx) {
    llama_memory_t memory = ctx.get_memory();
    if (auto * kv = dynamic_cast<llama_kv_cache *>(memory)) {
        return { kv };
    }
    if (auto * iswa = dynamic_cast<llama_kv_cache_iswa *>(memory)) {
        return { iswa->get_base(), iswa };
    }
    auto * hybrid = dynamic_cast<llama_memory_hybrid *>(memory);
    if (hybrid && typeid(*hybrid) == typeid(llama_memory_hybrid)) { // others have an index beside it
        return { hybrid->get_mem_attn(), nullptr, hybrid, hybrid->get_mem_recr() };
    }
    return {};
}

const llama_snapkv_vault * llama_snapkv_vault_of(const llama_context * ctx, llama_seq_id seq_id) {
    const llama_snapkv * sk = llama_snapkv_of(ctx);
    if (!sk) {
        return nullptr;
    }
    const auto & vaults = sk->vaults;
    const auto it = vaults.find(seq_id);
    if (it == vaults.end() || it->second.n_tokens() == 0) {
        llama_snapkv_set_error(format("sequence %d has no vault: set it in the parameters, and prefill", seq_id));
        return nullptr;
    }
    return &it->second;
}

std::vector<int32_t> llama_snapkv_readers(const llama_kv_cache & base, int32_t il) {
    const auto & ids = access::map_layer_ids(base);
    std::vector<int32_t> res;
    for (const auto & [reader, id] : ids) {
        if (id == ids.at(il)) {
            res.push_back(reader);
        }
    }
    std::sort(res.begin(), res.end());
    return res;
}

uint32_t llama_snapkv_n_head(const llama_model & model, const llama_kv_cache & base, int32_t il) {
    uint32_t res = 0;
    for (const int32_t reader : llama_snapkv_readers(base, il)) {
        res += model.hparams.n_head(reader);
    }
    return res;
}

std::vector<llama_snapkv_vault_layer> llama_snapkv_vault_layers(llama_context & ctx) {
    const auto & hparams = ctx.get_model().hparams;
    const llama_kv_cache & base = *llama_snapkv_memory_of(ctx).base;
    std::vector<llama_snapkv_vault_layer> layers;
    for (const auto & cached : access::layers(base)) {
        llama_snapkv_vault_layer layer;
        layer.type_k = cached.k->type;
        layer.type_v = cached.v ? cached.v->type : cached.k->type;
        layer.row_k = cached.k->nb[1];
        layer.row_v = cached.v ? cached.v->nb[1] : 0;
        layer.head_dim_k = hparams.n_embd_head_k(cached.il);
        layer.head_dim_v = hparams.n_embd_head_v(cached.il);
        layer.n_head = llama_snapkv_n_head(ctx.get_model(), base, (int32_t) cached.il);
        layer.n_head_kv = hparams.n_head_kv(cached.il);
        layers.push_back(layer);
    }
    return layers;
}
