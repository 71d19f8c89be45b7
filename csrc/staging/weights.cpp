#include "staging/weights.h"

#include "ggml-impl.h"

#include <algorithm>
#include <vector>

static bool is_host_weight(const ggml_tensor * t) {
    return t && t->op == GGML_OP_NONE && !t->view_src && t->buffer && ggml_backend_buffer_get_usage(t->buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS &&
            ggml_backend_buffer_is_host(t->buffer);
}

void llama_snapkv_lent_weights::lend(const ggml_cgraph * gf) {
    std::vector<ggml_tensor *> weights;
    copies.clear();
    for (int i = 0; i < gf->n_nodes; ++i) {
        if (gf->nodes[i]->op == GGML_OP_GET_ROWS) {
            continue;
        }
        for (ggml_tensor * src : gf->nodes[i]->src) {
            if (is_host_weight(src) && copies.emplace(src, nullptr).second) {
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
        ggml_backend_tensor_set(copy, w->data, 0, ggml_nbytes(w));
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
