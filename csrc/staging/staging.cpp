#include "staging/staging.h"

#include "graph/cut.h"
#include "staging/plan.h"
#include "upstream/access.h"

#include "llama-impl.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <stdexcept>
#include <tuple>

using access = llama_snapkv_access;

// layers may share a staging slot if their rows have equal sizes and live in one place
using slot_class = std::tuple<ggml_backend_buffer_type_t, uint32_t, uint32_t, uint32_t, uint32_t>;

static slot_class class_of(const llama_context & ctx, int32_t il, ggml_backend_dev_t dev) {
    const auto & hparams = ctx.get_model().hparams;
    return { ggml_backend_dev_buffer_type(dev), hparams.n_embd_k_gqa(il), hparams.n_embd_v_gqa(il), hparams.n_embd_head_k(il), hparams.n_embd_head_v(il) };
}

static std::unique_ptr<llama_kv_cache> make_kv(llama_context & ctx, const llama_kv_cache & base, const llama_snapkv_groups & groups, const llama_snapkv_place & place, uint32_t n_prompt) {
    if (llama_snapkv_alloc_fails("staging")) {
        throw std::runtime_error("out of memory: the staging cache");
    }

    // which of its class each layer is within its group, and how many a class has at most
    std::map<slot_class, uint32_t> n_slots;
    std::vector<uint32_t> nth;
    for (uint32_t ig = 0; ig < groups.count(); ++ig) {
        std::map<slot_class, uint32_t> n;
        for (uint32_t ic = groups.ic0(ig); ic < groups.ic1(ig); ++ic) {
            const auto cls = class_of(ctx, groups.ils[ic], place.devs[groups.ils[ic]]);
            nth.push_back(n[cls]++);
            n_slots[cls] = std::max(n_slots[cls], n[cls]);
        }
    }
    // the cache is made where its layers are, so layers whose weights are lent take slots of layers that are on the device
    std::map<slot_class, std::vector<int32_t>> slots;
    std::set<int32_t> stored;
    for (const int32_t il : groups.ils) {
        const auto cls = class_of(ctx, il, ctx.get_cparams().offload_kqv ? ctx.get_model().dev_layer(il) : place.devs[il]);
        if (slots[cls].size() < n_slots[cls]) {
            slots[cls].push_back(il);
            stored.insert(il);
        }
    }

    auto kv = std::make_unique<llama_kv_cache>(
            ctx.get_model(), ctx.get_model().hparams, base.type_k(), ctx.get_model().hparams.is_mla() ? base.type_k() : base.type_v(), access::v_trans(base), ctx.get_cparams().offload_kqv,
            /*unified =*/true, GGML_PAD(n_prompt, LLAMA_SNAPKV_N_KV_PAD), /*n_seq_max =*/1, access::n_pad(base), 0, LLAMA_SWA_TYPE_NONE, nullptr,
            [&](int32_t il) { return stored.count(il) > 0; }, nullptr, nullptr, "snapkv_");

    auto & map = access::map_layer_ids(*kv);
    auto ids = map;
    for (size_t ic = 0; ic < groups.ils.size(); ++ic) {
        const int32_t il = groups.ils[ic];
        ids[il] = map.at(slots.at(class_of(ctx, il, place.devs[il])).at(nth[ic]));
    }
    for (size_t ic = 0; ic < groups.ils.size(); ++ic) {
        for (const int32_t reader : groups.readers[ic]) {
            ids[reader] = ids.at(groups.ils[ic]);
        }
    }
    map = std::move(ids);
    return kv;
}

static void fill_mask(ggml_tensor * mask, int64_t n_max) {
    const ggml_fp16_t zero = ggml_fp32_to_fp16(0.0f);
    const ggml_fp16_t ninf = ggml_fp32_to_fp16(-INFINITY);
    std::vector<ggml_fp16_t> row(mask->ne[0], ninf);
    std::fill(row.begin(), row.begin() + n_max, zero);
    for (int64_t i = 0; i < mask->ne[1]; ++i) {
        row[n_max + i] = zero;
        ggml_backend_tensor_set(mask, row.data(), i * mask->nb[1], mask->nb[1]);
    }
}

llama_snapkv_staging llama_snapkv_make_staging(llama_context & ctx, const llama_snapkv_memory & mem, const llama_snapkv_params & params,
        const llama_snapkv_groups & groups, const llama_snapkv_place & place, const llama_snapkv_plan & plan, const llama_snapkv_task & task, uint32_t n_new, bool starts_aligned) {
    const uint32_t n_prompt = task.n_rows();
    llama_snapkv_staging st;
    st.n_max = GGML_PAD(n_prompt, LLAMA_SNAPKV_N_KV_PAD);

    st.kv = make_kv(ctx, *mem.base, groups, place, n_prompt);
    for (const auto & [_, size] : st.kv->memory_breakdown()) {
        st.bytes_kv += size;
    }

    st.ctx = llama_snapkv_gctx(64 * ggml_tensor_overhead());

    auto allocate = [&](ggml_tensor * t, ggml_backend_buffer_type_t buft, const char * part) -> size_t {
        st.bufs.push_back(llama_snapkv_alloc_buffer(buft, ggml_backend_buft_get_alloc_size(buft, t), part));
        ggml_backend_buffer_t buf = st.bufs.back().get();
        ggml_backend_tensor_alloc(buf, t, ggml_backend_buffer_get_base(buf));
        return ggml_backend_buffer_get_size(buf);
    };

    if (groups.count() > 1 || place.gpus.size() > 1) {
        ggml_backend_buffer_type_t buft = groups.count() > 1 ? place.buft(0) : nullptr;
        if (buft && plan.hidden_host) {
            ggml_backend_buffer_type_t pinned = ggml_backend_dev_host_buffer_type(place.devs[0]);
            buft = pinned ? pinned : ggml_backend_cpu_buffer_type();
        }
        st.hidden.allocate(llama_snapkv_hidden_size(ctx.get_model()), n_new, plan.chunk, buft, place.streams());
    }

    const auto & hparams = ctx.get_model().hparams;
    st.n_queries = task.n_queries();
    int64_t q_size = 0;
    for (const int32_t il : groups.ils) {
        q_size = std::max(q_size, (int64_t) hparams.n_embd_head_k(il) * llama_snapkv_n_head(ctx.get_model(), *mem.base, il) * st.n_queries);
    }
    std::map<ggml_backend_buffer_type_t, ggml_tensor *> queries;
    for (const int32_t il : groups.ils) {
        auto & t = queries[place.buft(il)];
        if (!t) {
            t = ggml_new_tensor_2d(st.ctx.get(), GGML_TYPE_F32, q_size, groups.size);
            ggml_set_name(t, "snapkv_queries");
            st.bytes_queries += allocate(t, place.buft(il), "queries");
        }
        st.queries.push_back(t);
    }

    // chunks that start anywhere need rows to shift by
    const bool aligned = starts_aligned && plan.chunk % llama_snapkv_staging::MASK_ALIGNMENT == 0;
    const int64_t rows = std::max(plan.chunk, params.window_size) + (aligned ? 0 : llama_snapkv_staging::MASK_ALIGNMENT);
    std::map<ggml_backend_buffer_type_t, ggml_tensor *> masks;
    for (const int32_t il : groups.ils) {
        auto & mask = masks[place.buft(il)];
        if (!mask) {
            mask = ggml_new_tensor_2d(st.ctx.get(), GGML_TYPE_F16, st.n_max + GGML_PAD(rows, LLAMA_SNAPKV_N_KV_PAD) + LLAMA_SNAPKV_N_KV_PAD, rows);
            ggml_set_name(mask, "snapkv_mask");
            st.bytes_mask += allocate(mask, place.buft(il), "mask");
            fill_mask(mask, st.n_max);
        }
        st.masks.push_back(mask);
    }
    return st;
}

ggml_tensor * llama_snapkv_staging::mask_view(ggml_context * ctx, uint32_t ic, int64_t n_cols, int64_t n_rows, int64_t p0) const {
    ggml_tensor * m = masks[ic];
    const int64_t row0 = std::min(p0 % MASK_ALIGNMENT, m->ne[1] - n_rows);
    return ggml_view_4d(ctx, m, n_cols, n_rows, 1, 1, m->nb[1], m->nb[1] * n_rows, m->nb[1] * n_rows, (n_max - p0 + row0) * m->nb[0] + row0 * m->nb[1]);
}

ggml_tensor * llama_snapkv_staging::queries_of(ggml_context * ctx, const llama_snapkv_layer & layer, int64_t row0, int64_t n_rows) const {
    ggml_tensor * t = queries[layer.ic];
    const size_t row = layer.head_dim * sizeof(float);
    return ggml_view_3d(ctx, t, layer.head_dim, n_rows, layer.n_head, row, n_queries * row, layer.slot * t->nb[1] + row0 * row);
}

ggml_tensor * llama_snapkv_staging::queries_of_reader(ggml_context * ctx, const llama_snapkv_layer & layer, int64_t head0, int64_t n_heads, int64_t row0, int64_t n_rows) const {
    ggml_tensor * t = queries[layer.ic];
    const size_t row = layer.head_dim * sizeof(float);
    const size_t head = n_queries * row;
    return ggml_view_4d(ctx, t, layer.head_dim, n_rows, n_heads, layer.n_head_kv, row, head, layer.n_head / layer.n_head_kv * head,
            layer.slot * t->nb[1] + head0 * head + row0 * row);
}

// the first rows of a cache tensor [n_embd_gqa, n_cells], head by head
static ggml_tensor * rows_by_head(ggml_context * ctx, ggml_tensor * t, int64_t head_dim, int64_t n_head_kv, int64_t n_rows) {
    return ggml_view_3d(ctx, t, head_dim, n_rows, n_head_kv, t->nb[1], t->nb[1] / n_head_kv, 0);
}

ggml_tensor * llama_snapkv_staging::keys_of(ggml_context * ctx, const llama_snapkv_layer & layer, int64_t n_rows) const {
    return rows_by_head(ctx, access::layer(*kv, layer.il).k, layer.head_dim, layer.n_head_kv, n_rows);
}

ggml_tensor * llama_snapkv_staging::values_of(ggml_context * ctx, const llama_snapkv_layer & layer, int64_t n_rows) const {
    const auto & cached = access::layer(*kv, layer.il);
    return rows_by_head(ctx, cached.v ? cached.v : cached.k, layer.head_dim_v, layer.n_head_kv, n_rows);
}

size_t llama_snapkv_full_bytes(const llama_kv_cache & base, uint32_t n_cells) {
    size_t res = 0;
    for (const auto & layer : access::layers(base)) {
        res += access::row_bytes(layer) * (size_t) n_cells;
    }
    return res;
}
