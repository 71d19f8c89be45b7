#include "staging/inputs.h"

#include "upstream/snapkv-alloc.h"

#include "llama-impl.h"

#include "ggml-impl.h"

#include <stdexcept>

// offsets suit any device
static constexpr size_t ALIGNMENT = 256;

void llama_snapkv_inputs::take(uint32_t i, const ggml_cgraph * gf, size_t max_bytes) {
    if (too_large) {
        return;
    }
    GGML_ASSERT(i == chunks.size());
    chunks.emplace_back();
    for (int l = 0; l < gf->n_leafs; ++l) {
        const ggml_tensor * t = gf->leafs[l];
        if (!(t->flags & GGML_TENSOR_FLAG_INPUT)) {
            continue;
        }
        const size_t offset = data.size();
        const size_t size = ggml_nbytes(t);
        if (!t->buffer || offset + size > max_bytes) {
            too_large = true;
            chunks.clear();
            data.clear();
            return;
        }
        data.resize(offset + GGML_PAD(size, ALIGNMENT));
        ggml_backend_tensor_get(t, data.data() + offset, 0, size);
        chunks.back().push_back({ t->name, offset, size });
    }
}

void llama_snapkv_inputs::upload(ggml_backend_buffer_type_t buft) {
    if (too_large || data.empty()) {
        return;
    }
    buf = llama_snapkv_alloc_buffer(buft, data.size(), "input");
    // a tensor to write the buffer through
    llama_snapkv_gctx ctx(ggml_tensor_overhead());
    ggml_tensor * all = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I8, (int64_t) data.size());
    ggml_backend_tensor_alloc(buf.get(), all, ggml_backend_buffer_get_base(buf.get()));
    ggml_backend_tensor_set(all, data.data(), 0, data.size());
    data = {};
}

void llama_snapkv_inputs::use(uint32_t i, ggml_cgraph * gf) const {
    size_t k = 0;
    const auto & inputs = chunks[i];
    for (int l = 0; l < gf->n_leafs; ++l) {
        ggml_tensor * t = gf->leafs[l];
        if (!(t->flags & GGML_TENSOR_FLAG_INPUT)) {
            continue;
        }
        if (k >= inputs.size() || inputs[k].name != t->name || inputs[k].size != ggml_nbytes(t)) {
            throw std::runtime_error(format("the graphs of two layer groups differ in their input %s", t->name));
        }
        ggml_backend_tensor_alloc(buf.get(), t, (char *) ggml_backend_buffer_get_base(buf.get()) + inputs[k].offset);
        ++k;
    }
}
