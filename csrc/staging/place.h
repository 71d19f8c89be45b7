// Which device computes each layer of a prefill, and which layers' weights have to be lent to it.
#pragma once

#include "state/context.h"

#include "ggml-backend.h"

#include <cstdint>
#include <vector>

struct llama_snapkv_groups;

struct llama_snapkv_place {
    std::vector<ggml_backend_dev_t> devs; // for each layer of the model
    ggml_backend_dev_t device = nullptr;  // the GPU that computes all layers; null if there is more than one device, or none
    bool lends = false; // some layers' weights are in host memory, and go to the device for the time of their group
    uint32_t max_group = 0; // most cached layers that staging can hold
    bool reads_mask_stride = true; // else each chunk's part of the mask is copied, so that its rows are adjacent

    ggml_backend_buffer_type_t buft(int32_t il) const { return ggml_backend_dev_buffer_type(devs[il]); }
};

llama_snapkv_place llama_snapkv_make_place(llama_context & ctx, const llama_snapkv_memory & mem, const llama_snapkv_groups & groups);

bool llama_snapkv_is_gpu(ggml_backend_dev_t dev);

// true if K and V rows of two cached layers have equal shapes, so that they may share a staging slot on one device
bool llama_snapkv_same_rows(const llama_context & ctx, int32_t il, int32_t jl);
