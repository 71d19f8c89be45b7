// A small model with heads of a given shape, whose weights are random, made in memory: what a device does with it does not depend on
// what it knows.
#pragma once

#include "ggml-backend.h"

#include "llama-cpp.h"

#include <cstdint>
#include <vector>

struct llama_snapkv_tiny_shape {
    uint32_t head_dim_k = 128;
    uint32_t head_dim_v = 128;
    uint32_t n_head = 8;
    uint32_t n_head_kv = 2;
    uint32_t n_layer = 5;
};

static constexpr uint32_t LLAMA_SNAPKV_TINY_VOCAB = 256;

// of the architecture llama, with all layers on the device, or on several in these proportions; the same weights at each call. throws if
// llama.cpp cannot make it
llama_model_ptr llama_snapkv_tiny_model(std::vector<ggml_backend_dev_t> devs, const llama_snapkv_tiny_shape & shape, const std::vector<float> & split = {});
