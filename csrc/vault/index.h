// Stretches of a vault's keys, each in two rows: what is asked first where there are too many rows to ask all.
#pragma once

#include "ggml.h"

#include <cstddef>
#include <cstdint>
#include <vector>

class llama_snapkv_index {
public:
    static constexpr uint32_t STRETCH = 16; // tokens; the last stretch may have fewer

    static uint32_t n_stretches(uint32_t n_tokens) { return (n_tokens + STRETCH - 1) / STRETCH; }

    // the first n tokens stay as they were; a stretch that others were a part of is made anew
    void truncate(uint32_t n) { n_tokens = n < n_tokens ? n / STRETCH * STRETCH : n_tokens; }

    struct shape {
        int64_t head_dim;
        int64_t n_head_kv;
    };

    // room for n tokens of cached layers. from stretch first() on the rows are to be written, and then filled() is to be called. throws
    // std::bad_alloc
    void reserve(uint32_t n, const std::vector<shape> & layers);
    void filled(uint32_t n) { n_tokens = n; }

    uint32_t size() const { return n_tokens; }
    uint32_t first() const { return n_tokens / STRETCH; }
    size_t bytes() const;

    // of a stretch of a head: its mean, and behind that its spread (llama_snapkv_stretch). the next stretch's follow, 4*head_dim bytes on
    ggml_fp16_t * mean(uint32_t ic, uint32_t head, uint32_t stretch) { return rows[ic][head].data() + 2 * stretch * layers[ic].head_dim; }
    const ggml_fp16_t * mean(uint32_t ic, uint32_t head, uint32_t stretch) const { return rows[ic][head].data() + 2 * stretch * layers[ic].head_dim; }

private:
    uint32_t n_tokens = 0;
    std::vector<shape> layers;
    std::vector<std::vector<std::vector<ggml_fp16_t>>> rows; // of each cached layer and KV head [head_dim, 2, n_stretches]
};
