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

    // room for n tokens. widths: elements of each layer's keys, all heads. from stretch first() on the rows are to be written, and then
    // filled() is to be called. throws std::bad_alloc
    void reserve(uint32_t n, const std::vector<int64_t> & widths);
    void filled(uint32_t n) { n_tokens = n; }

    uint32_t size() const { return n_tokens; }
    uint32_t first() const { return n_tokens / STRETCH; }
    size_t bytes() const { return bytes_of(n_tokens, widths); }
    static size_t bytes_of(uint32_t n, const std::vector<int64_t> & widths);

    // of a stretch, all heads as in a row of K: its mean, and behind that its spread (llama_snapkv_stretch)
    ggml_fp16_t * mean(uint32_t ic, uint32_t stretch) { return rows[ic].data() + 2 * stretch * widths[ic]; }
    ggml_fp16_t * spread(uint32_t ic, uint32_t stretch) { return mean(ic, stretch) + widths[ic]; }
    const ggml_fp16_t * mean(uint32_t ic, uint32_t stretch) const { return rows[ic].data() + 2 * stretch * widths[ic]; }
    const ggml_fp16_t * spread(uint32_t ic, uint32_t stretch) const { return mean(ic, stretch) + widths[ic]; }

private:
    uint32_t n_tokens = 0;
    std::vector<int64_t> widths;
    std::vector<std::vector<ggml_fp16_t>> rows; // of each cached layer [width, 2, n_stretches]
};
