#include "vault/index.h"

void llama_snapkv_index::reserve(uint32_t n, const std::vector<shape> & given) {
    layers = given;
    rows.resize(layers.size());
    for (size_t ic = 0; ic < rows.size(); ++ic) {
        rows[ic].resize(layers[ic].n_head_kv);
        for (auto & head : rows[ic]) {
            head.resize(2 * (size_t) n_stretches(n) * layers[ic].head_dim);
        }
    }
}

size_t llama_snapkv_index::bytes() const {
    size_t size = 0;
    for (const auto & layer : layers) {
        size += 2 * (size_t) n_stretches(n_tokens) * layer.head_dim * layer.n_head_kv * sizeof(ggml_fp16_t);
    }
    return size;
}
