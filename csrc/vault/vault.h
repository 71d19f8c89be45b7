// The vault of a sequence: K and V of all its prompt's tokens, in host memory. What eviction has dropped from the compact
// cache can be chosen anew from it, and a prompt that begins with the same tokens goes on from them.
#pragma once

#include "vault/index.h"
#include "vault/memory.h"

#include "upstream/snapkv-states.h"

#include "llama.h"

#include <cstdint>
#include <memory>
#include <vector>

// rows of one cached layer
struct llama_snapkv_vault_layer {
    ggml_type type_k = GGML_TYPE_F16;
    ggml_type type_v = GGML_TYPE_F16;
    size_t row_k = 0; // bytes of a token
    size_t row_v = 0; // 0: V is the first head_dim_v elements of K's row (MLA)
    int64_t head_dim_k = 0;
    int64_t head_dim_v = 0;
    int64_t n_head = 0;
    int64_t n_head_kv = 0;
    float scale = 1.0f;
    float softcap = 0.0f;
};

class llama_snapkv_vault {
public:
    // the last rows of the sliding-window layers before the end of a segment
    struct tail {
        uint32_t pos0 = 0;
        uint32_t n_rows = 0;     // less than capacity after truncate()
        uint32_t capacity = 0;
        const uint8_t * data = nullptr; // of each such layer capacity rows of K, then of V
    };

    // consecutive prompt tokens that one prefill has evaluated
    struct segment {
        uint32_t pos0 = 0;
        uint32_t n_rows = 0;     // less than capacity after truncate()
        uint32_t capacity = 0;
        uint32_t query0 = 0;     // first position that has queries; pos0 + capacity if none has
        std::vector<uint8_t *> k; // of each cached layer, capacity rows
        std::vector<uint8_t *> v;
        std::vector<std::vector<float>> q; // of each cached layer, [head_dim, capacity - (query0 - pos0), n_head], after RoPE
        tail swa;

        // of the above; none where it is the caller's, who has attached the segment
        std::unique_ptr<llama_snapkv_vault_memory> source; // while the segment is filled
        std::vector<std::shared_ptr<uint8_t>> memory;
        std::vector<uint8_t> swa_memory;
    };

    // keep the first n tokens
    void truncate(uint32_t n);

    // a segment for the tokens after these, not yet a part: in host memory, or in a file in a folder. throws std::runtime_error,
    // with the vault as it was
    segment reserve(ggml_backend_dev_t device, const std::string & dir, uint32_t n_rows, uint32_t query0) const;
    void take_memory(segment & seg, uint32_t ic) const; // before a layer is written to. throws as reserve()
    void append(segment && seg, const llama_token * tokens);

    // rows of the sliding-window layers from which evaluation can go on at position pos, where they reach back n_swa before it;
    // null if there are none
    const tail * find_tail(uint32_t pos, uint32_t n_swa) const;
    uint32_t max_tail_pos(uint32_t n, uint32_t n_swa) const; // the last position up to n for which there are; 0 if there is none

    // how many of the tokens are the vault's first ones
    uint32_t common_prefix(const llama_token * tokens, uint32_t n) const;

    // positions [pos0, pos1) of a layer's K or V, one piece for each segment: fn(data, position, rows)
    template <typename F>
    void each(bool is_v, uint32_t ic, uint32_t pos0, uint32_t pos1, F fn) const {
        const size_t row = is_v ? layers[ic].row_v : layers[ic].row_k;
        for (const auto & seg : segments) {
            const uint32_t a = pos0 > seg.pos0 ? pos0 : seg.pos0;
            const uint32_t b = pos1 < seg.pos0 + seg.n_rows ? pos1 : seg.pos0 + seg.n_rows;
            if (a < b) {
                fn((is_v ? seg.v : seg.k)[ic] + (a - seg.pos0) * row, a, b - a);
            }
        }
    }

    // the data of one row
    const uint8_t * row(bool is_v, uint32_t ic, uint32_t pos) const;

    uint32_t n_tokens() const { return (uint32_t) tokens.size(); }
    uint32_t n_queries() const; // of the last positions, without a gap
    size_t bytes() const;
    size_t bytes_of(uint32_t n_rows, uint32_t n_queries) const; // that so many rows take

    // the last n_queries() positions' of a layer, [head_dim, n, n_head]
    void read_queries(uint32_t ic, float * q) const;

    const std::vector<llama_token> & get_tokens() const { return tokens; }
    const std::vector<segment> & get_segments() const { return segments; }

    std::vector<llama_snapkv_vault_layer> layers; // set by the first prefill or segment

    // of these tokens, or of the first ones: what a recall asks, which makes it. nothing without recall
    llama_snapkv_index index;
    std::vector<llama_snapkv_index::shape> key_shapes() const;

    // of recurrent layers, without which a prompt cannot go on from its tokens. none for other models
    llama_snapkv_states states;

private:
    std::vector<llama_token> tokens;
    std::vector<segment> segments;
};
