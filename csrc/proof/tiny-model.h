// A small model with heads of a given shape, whose weights are random, made in memory: what a device does with it does not depend on
// what it knows.
#pragma once

#include "ggml-backend.h"

#include "llama-cpp.h"

struct llama_snapkv_tiny_shape {
    uint32_t head_dim_k = 128;
    uint32_t head_dim_v = 128;
    uint32_t n_head = 8;
    uint32_t n_head_kv = 2;
};

static constexpr uint32_t LLAMA_SNAPKV_TINY_VOCAB = 256;

// of the architecture llama, with all layers on the device; the same weights at each call. throws if llama.cpp cannot make it
llama_model_ptr llama_snapkv_tiny_model(ggml_backend_dev_t dev, const llama_snapkv_tiny_shape & shape);
