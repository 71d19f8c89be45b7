// A cached layer, as its attention node shows it, and those of the layers that share its KV.
#pragma once

#include "ggml.h"

#include <cstdint>

struct llama_snapkv_layer {
    uint32_t ic = 0; // cached layer
    int32_t il = 0; // layer of the model
    int64_t head_dim = 0;
    int64_t head_dim_v = 0;
    int64_t n_head = 0; // query heads, of all layers that read its KV: head h has KV head h / (n_head / n_head_kv)
    int64_t n_head_kv = 0;
    float scale = 1.0f;
    float softcap = 0.0f;
    ggml_tensor * sinks = nullptr;
    uint32_t slot = 0; // of llama_snapkv_staging::queries
};
