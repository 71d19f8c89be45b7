#include "vault/vault.h"

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
    states.truncate((llama_pos) n);
    index.truncate(n);
    while (!segments.empty() && segments.back().pos0 >= n) {
        segments.pop_back();
    }
    if (!segments.empty()) {
        auto & last = segments.back();
        last.n_rows = n - last.pos0;
        last.swa.n_rows = std::min(last.swa.n_rows, n - std::min(n, last.swa.pos0));
    }
}

llama_snapkv_vault::segment llama_snapkv_vault::reserve(ggml_backend_dev_t device, const std::string & dir, uint32_t n_rows, uint32_t query0) const {
    segment seg;
    seg.pos0 = n_tokens();
    seg.n_rows = n_rows;
    seg.capacity = n_rows;
    seg.query0 = std::min(std::max(query0, seg.pos0), seg.pos0 + n_rows);

    std::vector<size_t> sizes;
    for (const auto & layer : layers) {
        sizes.push_back(GGML_PAD(layer.row_k * n_rows, ALIGNMENT) + GGML_PAD(layer.row_v * n_rows, ALIGNMENT));
        seg.q.emplace_back((size_t) layer.head_dim_k * layer.n_head * (seg.pos0 + n_rows - seg.query0));
    }
    seg.source = std::make_unique<llama_snapkv_vault_memory>(std::move(sizes), device, dir);
    seg.memory.resize(layers.size());
    seg.k.resize(layers.size());
    seg.v.resize(layers.size());
    return seg;
}

void llama_snapkv_vault::take_memory(segment & seg, uint32_t ic) const {
    seg.memory[ic] = seg.source->take(ic);
    seg.k[ic] = seg.memory[ic].get();
    seg.v[ic] = seg.k[ic] + GGML_PAD(layers[ic].row_k * seg.capacity, ALIGNMENT);
}

void llama_snapkv_vault::append(segment && seg, const llama_token * added) {
    GGML_ASSERT(seg.pos0 == tokens.size());
    tokens.insert(tokens.end(), added, added + seg.n_rows);
    segments.push_back(std::move(seg));
    segments.back().source.reset();
}

uint32_t llama_snapkv_vault::max_tail_pos(uint32_t n, uint32_t n_swa) const {
    uint32_t res = 0;
    for (const auto & seg : segments) {
        const uint32_t pos = std::min(n, seg.swa.pos0 + seg.swa.n_rows);
        if (seg.swa.n_rows > 0 && (seg.swa.pos0 == 0 || pos >= seg.swa.pos0 + n_swa)) {
            res = std::max(res, pos);
        }
    }
    return res;
}

const llama_snapkv_vault::tail * llama_snapkv_vault::find_tail(uint32_t pos, uint32_t n_swa) const {
    for (const auto & seg : segments) {
        if (pos <= seg.swa.pos0 + seg.swa.n_rows && seg.swa.n_rows > 0 && (seg.swa.pos0 == 0 || pos >= seg.swa.pos0 + n_swa)) {
            return &seg.swa;
        }
    }
    return nullptr;
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

std::vector<llama_snapkv_index::shape> llama_snapkv_vault::key_shapes() const {
    std::vector<llama_snapkv_index::shape> res;
    for (const auto & layer : layers) {
        res.push_back({ layer.head_dim_k, layer.n_head_kv });
    }
    return res;
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
        size += bytes_of(seg.capacity, seg.pos0 + seg.capacity - seg.query0) + seg.swa_memory.size();
    }
    return size;
}
