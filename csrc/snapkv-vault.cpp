#include "snapkv-vault.h"

#include "llama-impl.h"

#include <algorithm>
#include <cstring>

// rows of any layer begin where any type may be read
static constexpr size_t ALIGNMENT = 256;

void llama_snapkv_vault::truncate(uint32_t n) {
    if (n >= tokens.size()) {
        return;
    }
    tokens.resize(n);
    while (!segments.empty() && segments.back().pos0 >= n) {
        segments.pop_back();
    }
    if (!segments.empty()) {
        segments.back().n_rows = n - segments.back().pos0;
    }
}

llama_snapkv_vault::segment llama_snapkv_vault::reserve(ggml_backend_buffer_type_t buft, uint32_t n_rows, uint32_t query0) const {
    segment seg;
    seg.pos0 = n_tokens();
    seg.n_rows = n_rows;
    seg.capacity = n_rows;
    seg.query0 = std::min(std::max(query0, seg.pos0), seg.pos0 + n_rows);

    std::vector<size_t> offsets;
    size_t size = 0;
    for (const auto & layer : layers) {
        for (const size_t row : { layer.row_k, layer.row_v }) {
            offsets.push_back(size);
            size += GGML_PAD(row * n_rows, ALIGNMENT);
        }
    }
    seg.buf = llama_snapkv_alloc_buffer(buft, size, "vault");
    uint8_t * base = (uint8_t *) ggml_backend_buffer_get_base(seg.buf.get());
    for (size_t ic = 0; ic < layers.size(); ++ic) {
        seg.k.push_back(base + offsets[2 * ic]);
        seg.v.push_back(base + offsets[2 * ic + 1]);
        seg.q.emplace_back((size_t) layers[ic].head_dim_k * layers[ic].n_head * (seg.pos0 + n_rows - seg.query0));
    }
    return seg;
}

void llama_snapkv_vault::append(segment && seg, const llama_token * added) {
    GGML_ASSERT(seg.pos0 == tokens.size());
    tokens.insert(tokens.end(), added, added + seg.n_rows);
    segments.push_back(std::move(seg));
}

uint32_t llama_snapkv_vault::common_prefix(const llama_token * other, uint32_t n) const {
    const auto end = other + std::min<size_t>(n, tokens.size());
    return (uint32_t) (std::mismatch(other, end, tokens.begin()).first - other);
}

const uint8_t * llama_snapkv_vault::row(bool is_v, uint32_t ic, uint32_t pos) const {
    const auto seg = std::upper_bound(segments.begin(), segments.end(), pos, [](uint32_t p, const segment & s) { return p < s.pos0; }) - 1;
    return (is_v ? seg->v : seg->k)[ic] + (pos - seg->pos0) * (is_v ? layers[ic].row_v : layers[ic].row_k);
}

uint32_t llama_snapkv_vault::n_queries() const {
    uint32_t first = n_tokens();
    for (auto seg = segments.rbegin(); seg != segments.rend(); ++seg) {
        first = std::min(first, seg->query0);
        if (seg->query0 > seg->pos0) {
            break;
        }
    }
    return n_tokens() - first;
}

void llama_snapkv_vault::read_queries(uint32_t ic, float * q) const {
    const auto & layer = layers[ic];
    const uint32_t n = n_queries();
    const uint32_t first = n_tokens() - n;
    for (const auto & seg : segments) {
        const uint32_t a = std::max(first, seg.query0);
        const uint32_t b = seg.pos0 + seg.n_rows;
        const int64_t stride = seg.pos0 + seg.capacity - seg.query0; // rows of a head
        for (int64_t h = 0; a < b && h < layer.n_head; ++h) {
            memcpy(q + (h * n + a - first) * layer.head_dim_k, seg.q[ic].data() + (h * stride + a - seg.query0) * layer.head_dim_k,
                    (b - a) * layer.head_dim_k * sizeof(float));
        }
    }
}

size_t llama_snapkv_vault::bytes_of(uint32_t n_rows, uint32_t n_queries) const {
    size_t size = 0;
    for (const auto & layer : layers) {
        size += GGML_PAD(layer.row_k * n_rows, ALIGNMENT) + GGML_PAD(layer.row_v * n_rows, ALIGNMENT);
        size += (size_t) layer.head_dim_k * layer.n_head * n_queries * sizeof(float);
    }
    return size;
}

size_t llama_snapkv_vault::bytes() const {
    size_t size = 0;
    for (const auto & seg : segments) {
        size += bytes_of(seg.capacity, seg.pos0 + seg.capacity - seg.query0);
    }
    return size;
}
