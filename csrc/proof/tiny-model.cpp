#include "proof/tiny-model.h"

#include "ggml-cpp.h"
#include "gguf.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

static constexpr uint32_t N_EMBD = 128;
static constexpr uint32_t N_FF = 256;
static constexpr uint32_t N_CTX = 65536;

// norms are 1, and matrices as large as keeps a row's output near 1; queries larger, or all keys would get about the same attention
static void set_weights(ggml_tensor * tensor, void *) {
    const bool is_norm = ggml_n_dims(tensor) == 1;
    const float scale = std::sqrt(3.0f / (float) tensor->ne[0]) * (strstr(tensor->name, "attn_q") ? 3.0f : 1.0f);
    uint64_t x = 0x9e3779b97f4a7c15u;
    for (const char * c = tensor->name; *c; ++c) {
        x = (x ^ (uint64_t) *c) * 0x100000001b3u;
    }
    std::vector<float> data(ggml_nelements(tensor), 1.0f);
    for (size_t i = 0; !is_norm && i < data.size(); ++i) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        data[i] = scale * ((float) (int32_t) (x >> 32) / 2147483648.0f); // uniform in [-scale, scale)
    }
    ggml_backend_tensor_set(tensor, data.data(), 0, ggml_nbytes(tensor));
}

llama_model_ptr llama_snapkv_tiny_model(std::vector<ggml_backend_dev_t> devs, const llama_snapkv_tiny_shape & shape, const std::vector<float> & split) {
    gguf_context_ptr meta(gguf_init_empty());
    gguf_set_val_str(meta.get(), "general.architecture", "llama");
    gguf_set_val_str(meta.get(), "tokenizer.ggml.model", "no_vocab");
    gguf_set_val_f32(meta.get(), "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    const struct {
        const char * name;
        uint32_t value;
    } values[] = {
        { "llama.vocab_size", LLAMA_SNAPKV_TINY_VOCAB },
        { "llama.context_length", N_CTX },
        { "llama.embedding_length", N_EMBD },
        { "llama.block_count", shape.n_layer },
        { "llama.feed_forward_length", N_FF },
        { "llama.attention.head_count", shape.n_head },
        { "llama.attention.head_count_kv", shape.n_head_kv },
        { "llama.attention.key_length", shape.head_dim_k },
        { "llama.attention.value_length", shape.head_dim_v },
        { "llama.rope.dimension_count", shape.head_dim_k },
    };
    for (const auto & [name, value] : values) {
        gguf_set_val_u32(meta.get(), name, value);
    }

    const auto type = ggml_backend_dev_type(devs[0]);
    if (type == GGML_BACKEND_DEVICE_TYPE_CPU || type == GGML_BACKEND_DEVICE_TYPE_ACCEL) {
        devs.clear(); // on no other device; the CPU is always there, and so are its accelerators
    }
    devs.push_back(nullptr);
    std::vector<float> shares = split;
    shares.resize(llama_max_devices());
    llama_model_params mp = llama_model_default_params();
    mp.devices = devs.data();
    mp.tensor_split = split.empty() ? nullptr : shares.data();
    mp.n_gpu_layers = devs[0] ? 99 : 0;
    llama_model_ptr model(llama_model_init_from_user(meta.get(), set_weights, nullptr, mp));
    if (!model) {
        throw std::runtime_error("llama.cpp cannot make a small model there");
    }
    return model;
}
