#include "staging/place.h"

#include "staging/plan.h"
#include "upstream/access.h"
#include "upstream/devices.h"

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <map>

bool llama_snapkv_is_gpu(ggml_backend_dev_t dev) {
    const auto type = ggml_backend_dev_type(dev);
    return type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU;
}

bool llama_snapkv_same_rows(const llama_context & ctx, int32_t il, int32_t jl) {
    const auto & hp = ctx.get_model().hparams;
    return hp.n_embd_k_gqa(il) == hp.n_embd_k_gqa(jl) && hp.n_embd_v_gqa(il) == hp.n_embd_v_gqa(jl) &&
            hp.n_embd_head_k(il) == hp.n_embd_head_k(jl) && hp.n_embd_head_v(il) == hp.n_embd_head_v(jl);
}

// of one kind, which have streams and events of their own
static bool are_alike(ggml_backend_dev_t a, ggml_backend_dev_t b) {
    ggml_backend_dev_props props;
    ggml_backend_dev_get_props(b, &props);
    return llama_snapkv_backend_of(b).overlaps && props.caps.async && props.caps.events && ggml_backend_dev_backend_reg(a) == ggml_backend_dev_backend_reg(b) &&
            strcmp(ggml_backend_dev_description(a), ggml_backend_dev_description(b)) == 0;
}

static void find_gpus(const llama_context & ctx, const llama_snapkv_memory & mem, const llama_snapkv_groups & groups, llama_snapkv_place & place) {
    // caches of sliding-window layers and recurrent states stay where they are; rows of a matrix are on all devices at once
    const bool stays = mem.iswa || mem.recr || ctx.get_model().split_mode() != LLAMA_SPLIT_MODE_LAYER;
    std::vector<ggml_backend_dev_t> gpus;
    for (int32_t il = 0; il < groups.n_layer; ++il) {
        ggml_backend_dev_t dev = place.devs[il];
        if (stays || !llama_snapkv_is_gpu(dev) || !are_alike(gpus.empty() ? dev : gpus[0], dev)) {
            return;
        }
        if (gpus.empty() || gpus.back() != dev) {
            if (std::find(gpus.begin(), gpus.end(), dev) != gpus.end()) {
                return;
            }
            gpus.push_back(dev);
        }
    }
    std::map<ggml_backend_dev_t, uint32_t> n_cached;
    for (size_t ic = 0; ic < groups.ils.size(); ++ic) {
        if (groups.readers[ic].size() > 1 || !llama_snapkv_same_rows(ctx, groups.ils[ic], groups.ils[0])) {
            return;
        }
        n_cached[place.devs[groups.ils[ic]]]++;
    }
    uint32_t n_min = UINT32_MAX; // a GPU's staging slots are made for layers that are there
    for (ggml_backend_dev_t gpu : gpus) {
        n_min = std::min(n_min, n_cached[gpu]);
    }
    place.max_dealt = n_min * (uint32_t) gpus.size();
    place.gpus = std::move(gpus);
}

void llama_snapkv_place::deal(const llama_snapkv_groups & groups) {
    for (uint32_t ig = 0; ig < groups.count(); ++ig) {
        const uint32_t n = groups.ic1(ig) - groups.ic0(ig);
        const bool is_last = ig + 1 == groups.count();
        // few layers: on the first GPU, which has the hidden state, or at the end on the last one, which has the output's weights
        const auto n_gpus = (uint32_t) gpus.size();
        const uint32_t n_used = std::min(n, n_gpus);
        const uint32_t first = is_last ? n_gpus - n_used : 0;
        int32_t il = groups.il0(ig);
        for (uint32_t k = 0; k < n; ++k) {
            for (const int32_t end = is_last && k + 1 == n ? groups.il1(ig) : groups.ils[groups.ic0(ig) + k] + 1; il < end; ++il) {
                devs[il] = gpus[first + k * n_used / n];
            }
        }
    }
}

std::vector<llama_snapkv_stage> llama_snapkv_place::stages(const llama_snapkv_groups & groups, uint32_t ig) const {
    int32_t il = groups.il0(ig);
    const int32_t end = groups.il1(ig);
    if (gpus.empty()) {
        return { { il, end, devs[end - 1] } };
    }
    std::vector<llama_snapkv_stage> res;
    for (ggml_backend_dev_t gpu : gpus) {
        if (il == end) {
            break;
        }
        llama_snapkv_stage stage = { il, il, gpu };
        while (stage.il1 < end && devs[stage.il1] == gpu) {
            stage.il1++;
        }
        il = stage.il1;
        res.push_back(stage);
    }
    GGML_ASSERT(il == end);
    return res;
}

llama_snapkv_place llama_snapkv_make_place(llama_context & ctx, const llama_snapkv_memory & mem, const llama_snapkv_groups & groups, bool overlaps) {
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
    place.homes = place.devs;
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
        if (overlaps) {
            find_gpus(ctx, mem, groups, place);
        }
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
        place.homes = place.devs;
        place.device = gpu;
        place.lends = true;
        place.max_group = (uint32_t) resident.size();
    }
    return place;
}
