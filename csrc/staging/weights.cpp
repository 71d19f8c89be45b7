#include "staging/weights.h"

#include "staging/place.h"

#include "ggml-impl.h"

#include <algorithm>
#include <vector>

bool llama_snapkv_lent_weights::is_wanted(const ggml_tensor * t) const {
    if (!t || t->op != GGML_OP_NONE || t->view_src || !t->buffer || (t->flags & GGML_TENSOR_FLAG_INPUT)) {
        return false;
    }
    ggml_backend_buffer_type_t buft = ggml_backend_buffer_get_type(t->buffer);
    if (lender == llama_snapkv_lender::gpus) { // adapters' weights, too
        ggml_backend_dev_t there = ggml_backend_buft_get_device(buft);
        return there && there != device && llama_snapkv_is_gpu(there) && buft == ggml_backend_dev_buffer_type(there);
    }
    return ggml_backend_buffer_get_usage(t->buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS && ggml_backend_buft_is_host(buft);
}

void llama_snapkv_lent_weights::lend(const ggml_cgraph * gf) {
    std::vector<ggml_tensor *> weights;
    copies.clear();
    for (int i = 0; i < gf->n_nodes; ++i) {
        if (gf->nodes[i]->op == GGML_OP_GET_ROWS) {
            continue;
        }
        for (ggml_tensor * src : gf->nodes[i]->src) {
            if (is_wanted(src) && copies.emplace(src, nullptr).second) {
                weights.push_back(src);
            }
        }
    }
    if (weights.empty()) {
        return;
    }

    ctx = llama_snapkv_gctx(weights.size() * ggml_tensor_overhead());
    for (ggml_tensor * w : weights) {
        ggml_tensor * copy = ggml_dup_tensor(ctx.get(), w);
        ggml_set_name(copy, w->name);
        copies[w] = copy;
    }

    ggml_backend_buffer_type_t buft = ggml_backend_dev_buffer_type(device);
    const size_t alignment = ggml_backend_buft_get_alignment(buft);
    size_t size = 0;
    for (ggml_tensor * w : weights) {
        size += GGML_PAD(ggml_backend_buft_get_alloc_size(buft, copies[w]), alignment);
    }
    if (!buf || ggml_backend_buffer_get_size(buf.get()) < size) {
        buf.reset(); // first, so that there are never two
        buf = llama_snapkv_alloc_buffer(buft, size, "lent weights");
        ggml_backend_buffer_set_usage(buf.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        bytes = std::max(bytes, size);
    }

    size_t offset = 0;
    for (ggml_tensor * w : weights) {
        ggml_tensor * copy = copies[w];
        ggml_backend_tensor_alloc(buf.get(), copy, (char *) ggml_backend_buffer_get_base(buf.get()) + offset);
        ggml_backend_tensor_copy(w, copy);
        offset += GGML_PAD(ggml_backend_buft_get_alloc_size(buft, copy), alignment);
    }
}

void llama_snapkv_lent_weights::substitute(ggml_cgraph * gf) const {
    if (copies.empty()) {
        return;
    }
    for (int i = 0; i < gf->n_nodes; ++i) {
        if (gf->nodes[i]->op == GGML_OP_GET_ROWS) {
            continue;
        }
        for (ggml_tensor *& src : gf->nodes[i]->src) {
            const auto it = copies.find(src);
            if (it != copies.end()) {
                src = it->second;
            }
        }
    }
}
