#include "snapkv-staging.h"

#include "snapkv-access.h"

#include "llama-impl.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <stdexcept>
#include <tuple>

using access = llama_snapkv_access;

bool llama_snapkv_alloc_fails(const char * part) {
    const char * fail = getenv("SNAPKV_TEST_FAIL_ALLOC");
    return fail && strcmp(fail, part) == 0;
}

static ggml_backend_buffer_type_t kv_buft(llama_context & ctx, int32_t il) {
    return ctx.get_cparams().offload_kqv ? ggml_backend_dev_buffer_type(ctx.get_model().dev_layer(il)) : ggml_backend_cpu_buffer_type();
}

// where the hidden state may live, the first choice first
static std::vector<ggml_backend_buffer_type_t> hidden_bufts(llama_context & ctx, enum llama_snapkv_hidden place) {
    ggml_backend_dev_t dev = ctx.get_model().dev_layer(0);
    ggml_backend_buffer_type_t device = ggml_backend_dev_buffer_type(dev);
    ggml_backend_buffer_type_t pinned = ggml_backend_dev_host_buffer_type(dev);
    ggml_backend_buffer_type_t host = pinned ? pinned : ggml_backend_cpu_buffer_type();
    switch (place) {
        case LLAMA_SNAPKV_HIDDEN_DEVICE: return { device };
        case LLAMA_SNAPKV_HIDDEN_HOST: return { host };
        case LLAMA_SNAPKV_HIDDEN_AUTO: break;
    }
    return { device, host };
}

// layers may share a staging slot if their rows have equal sizes and live in one place
using slot_class = std::tuple<ggml_backend_buffer_type_t, uint32_t, uint32_t, uint32_t, uint32_t>;

static std::map<slot_class, std::vector<int32_t>> slot_classes(llama_context & ctx, const llama_snapkv_groups & groups) {
    const auto & hparams = ctx.get_model().hparams;
    std::map<slot_class, std::vector<int32_t>> res;
    for (const int32_t il : groups.ils) {
        res[{ kv_buft(ctx, il), hparams.n_embd_k_gqa(il), hparams.n_embd_v_gqa(il), hparams.n_embd_head_k(il), hparams.n_embd_head_v(il) }].push_back(il);
    }
    return res;
}

static std::unique_ptr<llama_kv_cache> make_kv(llama_context & ctx, const llama_kv_cache & base, const llama_snapkv_groups & groups, uint32_t n_prompt) {
    if (llama_snapkv_alloc_fails("staging")) {
        throw std::runtime_error("out of memory: the staging cache");
    }

    const auto classes = slot_classes(ctx, groups);
    std::set<int32_t> stored; // a group has at most G layers of a class, and they follow each other in it
    for (const auto & [_, ils] : classes) {
        stored.insert(ils.begin(), ils.begin() + std::min<size_t>(groups.size, ils.size()));
    }

    auto kv = std::make_unique<llama_kv_cache>(
            ctx.get_model(), ctx.get_model().hparams, base.type_k(), base.type_v(), access::v_trans(base), ctx.get_cparams().offload_kqv,
            /*unified =*/true, GGML_PAD(n_prompt, LLAMA_SNAPKV_N_KV_PAD), /*n_seq_max =*/1, access::n_pad(base), 0, LLAMA_SWA_TYPE_NONE, nullptr,
            [&](int32_t il) { return stored.count(il) > 0; }, nullptr, nullptr, "snapkv_");

    auto & map = access::map_layer_ids(*kv);
    for (const auto & [_, ils] : classes) {
        for (size_t i = 0; i < ils.size(); ++i) {
            map[ils[i]] = map.at(ils[i % groups.size]);
        }
    }
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
        const llama_snapkv_groups & groups, uint32_t n_prompt, uint32_t chunk) {
    llama_snapkv_staging st;
    st.n_max = GGML_PAD(n_prompt, LLAMA_SNAPKV_N_KV_PAD);

    st.kv = make_kv(ctx, *mem.base, groups, n_prompt);
    for (const auto & [_, size] : st.kv->memory_breakdown()) {
        st.bytes_kv += size;
    }

    st.ctx.reset(ggml_init({ /*.mem_size =*/64 * ggml_tensor_overhead(), /*.mem_buffer =*/nullptr, /*.no_alloc =*/true }));

    auto allocate = [&](ggml_tensor * t, const std::vector<ggml_backend_buffer_type_t> & bufts, const char * part) -> size_t {
        for (ggml_backend_buffer_type_t buft : bufts) {
            ggml_backend_buffer_t buf = llama_snapkv_alloc_fails(part) ? nullptr : ggml_backend_buft_alloc_buffer(buft, ggml_backend_buft_get_alloc_size(buft, t));
            if (buf) {
                st.bufs.emplace_back(buf);
                ggml_backend_tensor_alloc(buf, t, ggml_backend_buffer_get_base(buf));
                return ggml_backend_buffer_get_size(buf);
            }
        }
        throw std::runtime_error(format("out of memory: the %s takes %.1f MiB on %s", part, ggml_nbytes(t) / 1048576.0, ggml_backend_buft_name(bufts.back())));
    };

    if (groups.count() > 1) {
        st.hidden = ggml_new_tensor_2d(st.ctx.get(), GGML_TYPE_F32, ctx.get_model().hparams.n_embd, n_prompt);
        ggml_set_name(st.hidden, "snapkv_hidden");
        st.bytes_hidden += allocate(st.hidden, hidden_bufts(ctx, params.hidden), "hidden");
    }

    const auto & hparams = ctx.get_model().hparams;
    int64_t q_size = 0;
    for (const int32_t il : groups.ils) {
        q_size = std::max(q_size, (int64_t) hparams.n_embd_head_k(il) * hparams.n_head(il) * params.window);
    }
    st.queries = ggml_new_tensor_2d(st.ctx.get(), GGML_TYPE_F32, q_size, groups.size);
    ggml_set_name(st.queries, "snapkv_queries");
    st.bytes_hidden += allocate(st.queries, { kv_buft(ctx, groups.ils[0]) }, "hidden");

    const int64_t rows = std::max(chunk, params.window);
    std::map<ggml_backend_buffer_type_t, ggml_tensor *> masks;
    for (const int32_t il : groups.ils) {
        auto & mask = masks[kv_buft(ctx, il)];
        if (!mask) {
            mask = ggml_new_tensor_2d(st.ctx.get(), GGML_TYPE_F16, st.n_max + GGML_PAD(rows, LLAMA_SNAPKV_N_KV_PAD) + LLAMA_SNAPKV_N_KV_PAD, rows);
            ggml_set_name(mask, "snapkv_mask");
            st.bytes_mask += allocate(mask, { kv_buft(ctx, il) }, "mask");
            fill_mask(mask, st.n_max);
        }
        st.masks.push_back(mask);
    }
    return st;
}

ggml_tensor * llama_snapkv_staging::mask_view(ggml_context * ctx, uint32_t ic, int64_t n_cols, int64_t n_rows, int64_t p0) const {
    ggml_tensor * m = masks[ic];
    return ggml_view_4d(ctx, m, n_cols, n_rows, 1, 1, m->nb[1], m->nb[1] * n_rows, m->nb[1] * n_rows, (n_max - p0) * m->nb[0]);
}

size_t llama_snapkv_full_bytes(const llama_kv_cache & base, uint32_t n_cells) {
    size_t res = 0;
    for (const auto & layer : access::layers(base)) {
        res += (layer.k->nb[1] + layer.v->nb[1]) * (size_t) n_cells;
    }
    return res;
}

uint32_t llama_snapkv_choose_group(llama_context & ctx, const llama_snapkv_memory & mem, const llama_snapkv_params & params,
        const llama_snapkv_groups & groups, uint32_t n_prompt, uint32_t chunk) {
    const uint32_t n = (uint32_t) groups.ils.size();
    if (params.layer_group > 0) {
        return std::min(params.layer_group, n);
    }

    // on the CPU a pass over the hidden state costs next to nothing (results/memory-smollm2-8k.json), and free memory there is
    // the whole system's: take the smallest
    ggml_backend_dev_t dev = ctx.get_model().dev_layer(groups.ils[0]);
    if (ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU || !ctx.get_cparams().offload_kqv) {
        return 1;
    }

    size_t free = 0;
    size_t total = 0;
    ggml_backend_dev_memory(dev, &free, &total);
    const size_t fixed = (size_t) n_prompt * ctx.get_model().hparams.n_embd * sizeof(float) + (size_t) (GGML_PAD(n_prompt, LLAMA_SNAPKV_N_KV_PAD) + 2 * GGML_PAD(chunk, LLAMA_SNAPKV_N_KV_PAD)) * chunk * sizeof(ggml_fp16_t);
    const size_t spare = total / 16; // compute buffers and the scorer's scratch
    const size_t layer = llama_snapkv_full_bytes(*mem.base, GGML_PAD(n_prompt, LLAMA_SNAPKV_N_KV_PAD)) / n;
    const size_t room = free > fixed + spare ? free - fixed - spare : 0;
    return std::clamp<uint32_t>((uint32_t) (room / std::max<size_t>(layer, 1)), 1, n);
}
