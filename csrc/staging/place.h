// Which device computes each layer of a prefill, and which layers' weights have to be lent to it.
#pragma once

#include "state/context.h"

#include "ggml-backend.h"

#include <cstdint>
#include <vector>

struct llama_snapkv_groups;

// neighbouring layers of a group, on one device; none where il0 = il1
struct llama_snapkv_stage {
    int32_t il0 = 0;
    int32_t il1 = 0;
    ggml_backend_dev_t dev = nullptr;

    bool is_empty() const { return il0 == il1; }
};

struct llama_snapkv_place {
    std::vector<ggml_backend_dev_t> devs; // for each layer of the model
    ggml_backend_dev_t device = nullptr;  // the GPU that computes all layers; null if there is more than one device, or none
    bool lends = false; // some layers' weights are in host memory, and go to the device for the time of their group
    uint32_t max_group = 0; // most cached layers that staging can hold
    bool reads_mask_stride = true; // else each chunk's part of the mask is copied, so that its rows are adjacent

    // GPUs that can compute at the same time, each a stage of a group: chunks go from one to the next. in the order of the layers that
    // are on them; empty unless there are several of one kind that have all layers, and a stage of the model needs nothing of
    // another but the hidden state
    std::vector<ggml_backend_dev_t> gpus;
    uint32_t max_dealt = 0; // most cached layers of a group that deal() can deal

    ggml_backend_buffer_type_t buft(int32_t il) const { return ggml_backend_dev_buffer_type(devs[il]); }

    // each group's layers in equal shares over all gpus, which are lent the weights that they do not have. GPUs of one kind compute the
    // same bits, so that a layer may be computed by any of them
    void deal(const llama_snapkv_groups & groups);
    // each layer where it is
    void gather() { devs = homes; }
    bool is_dealt() const { return devs != homes; }

    // devices on which graphs are in flight, one for each stage that a group may have; none if any may compute anything
    std::vector<ggml_backend_dev_t> streams() const { return !gpus.empty() ? gpus : device ? std::vector<ggml_backend_dev_t>{ device }
                                                                                           : std::vector<ggml_backend_dev_t>(); }

    // of a group, in order: one for each of gpus, up to the last that is not empty; without these one for all layers
    std::vector<llama_snapkv_stage> stages(const llama_snapkv_groups & groups, uint32_t ig) const;

    std::vector<ggml_backend_dev_t> homes; // devs before anything was dealt
};

// overlaps: may chunks go through several GPUs at the same time?
llama_snapkv_place llama_snapkv_make_place(llama_context & ctx, const llama_snapkv_memory & mem, const llama_snapkv_groups & groups, bool overlaps);

bool llama_snapkv_is_gpu(ggml_backend_dev_t dev);

// true if K and V rows of two cached layers have equal shapes, so that they may share a staging slot on one device
bool llama_snapkv_same_rows(const llama_context & ctx, int32_t il, int32_t jl);
