#include "staging/place.h"

#include "staging/plan.h"
#include "upstream/access.h"
#include "upstream/devices.h"

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>

bool llama_snapkv_is_gpu(ggml_backend_dev_t dev) {
    const auto type = ggml_backend_dev_type(dev);
    return type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU;
}

bool llama_snapkv_same_rows(const llama_context & ctx, int32_t il, int32_t jl) {
    const auto & hp = ctx.get_model().hparams;
    return hp.n_embd_k_gqa(il) == hp.n_embd_k_gqa(jl) && hp.n_embd_v_gqa(il) == hp.n_embd_v_gqa(jl) &&
            hp.n_embd_head_k(il) == hp.n_embd_head_k(jl) && hp.n_embd_head_v(il) == hp.n_embd_head_v(jl);
}

llama_snapkv_place llama_snapkv_make_place(llama_context & ctx, const llama_snapkv_memory & mem, const llama_snapkv_groups & groups) {
    const auto & model = ctx.get_model();
    const auto & cp = ctx.get_cparams();

    llama_snapkv_place place;
    place.max_group = (uint32_t) groups.ils.size();
    for (int32_t il = 0; il < groups.n_layer; ++il) {
        place.devs.push_back(cp.offload_kqv ? model.dev_layer(il) : ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
    }
    // any of the context's backends may get an attention node
    std::vector<ggml_backend_dev_t> devs;
    for (ggml_backend_t backend : llama_snapkv_access::backend_ptrs(ctx)) {
        devs.push_back(ggml_backend_get_device(backend));
    }
    place.reads_mask_stride = llama_snapkv_reads_mask_stride(devs);
    if (!cp.offload_kqv) {
        return place;
    }

    std::vector<int32_t> resident; // cached layers on the first GPU
    std::vector<int32_t> others;
    ggml_backend_dev_t gpu = nullptr;
    for (const int32_t il : groups.ils) {
        ggml_backend_dev_t dev = place.devs[il];
        gpu = gpu ? gpu : llama_snapkv_is_gpu(dev) ? dev
                                                   : nullptr;
        (gpu && dev == gpu ? resident : others).push_back(il);
    }
    if (!gpu || std::any_of(place.devs.begin(), place.devs.end(), [&](ggml_backend_dev_t dev) { return llama_snapkv_is_gpu(dev) && dev != gpu; })) {
        return place;
    }
    if (std::all_of(place.devs.begin(), place.devs.end(), [&](ggml_backend_dev_t dev) { return dev == gpu; })) {
        place.device = gpu;
        return place;
    }

    // layers in host memory: staging is a cache of layers on the device, so one of equal rows must be there. caches of
    // sliding-window layers and recurrent states stay where they are, and so do their layers
    const bool fits = cp.op_offload && !mem.iswa && !mem.recr && std::all_of(others.begin(), others.end(), [&](int32_t il) {
        return llama_snapkv_same_rows(ctx, il, resident[0]);
    });
    if (fits && std::all_of(resident.begin(), resident.end(), [&](int32_t il) { return llama_snapkv_same_rows(ctx, il, resident[0]); })) {
        std::fill(place.devs.begin(), place.devs.end(), gpu);
        place.device = gpu;
        place.lends = true;
        place.max_group = (uint32_t) resident.size();
    }
    return place;
}
