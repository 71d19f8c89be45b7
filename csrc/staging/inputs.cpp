#include "staging/inputs.h"

#include "upstream/snapkv-alloc.h"

#include "llama-impl.h"

#include "ggml-impl.h"

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <unordered_set>
#include <utility>

// offsets suit any device
static constexpr size_t ALIGNMENT = 256;
static constexpr size_t NOT_TAKEN = SIZE_MAX; // in the place of an offset

void llama_snapkv_inputs::begin(const std::vector<ggml_backend_dev_t> & devs, size_t bytes) {
    devices = devs;
    max_bytes = bytes;
}

void llama_snapkv_inputs::take(uint32_t i, const ggml_cgraph * gf, size_t max_bytes_so_far) {
    GGML_ASSERT(i == chunks.size());
    std::vector<input> inputs;
    std::vector<uint8_t> data;
    for (int l = 0; l < gf->n_leafs; ++l) {
        const ggml_tensor * t = gf->leafs[l];
        if (!(t->flags & GGML_TENSOR_FLAG_INPUT)) {
            continue;
        }
        const size_t offset = data.size();
        const size_t size = ggml_nbytes(t);
        inputs.push_back({ t->name, NOT_TAKEN, size });
        if (!t->buffer || n_bytes + offset + GGML_PAD(size, ALIGNMENT) > std::min(max_bytes, max_bytes_so_far)) {
            continue;
        }
        std::vector<uint8_t> bytes(size);
        ggml_backend_tensor_get(t, bytes.data(), 0, size);
        auto & known = last[t->name];
        if (known.bytes != bytes) {
            known = { n_bytes + offset, std::move(bytes) };
            data.insert(data.end(), known.bytes.begin(), known.bytes.end());
            data.resize(offset + GGML_PAD(size, ALIGNMENT));
        }
        inputs.back().offset = known.offset;
    }

    for (size_t k = 0; !data.empty() && k < devices.size(); ++k) {
        auto & buf = bufs[devices[k]];
        if (!buf) {
            buf = llama_snapkv_alloc_buffer(ggml_backend_dev_buffer_type(devices[k]), max_bytes, "input");
        }
        // a tensor to write the buffer through
        llama_snapkv_gctx ctx(ggml_tensor_overhead());
        ggml_tensor * all = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I8, (int64_t) data.size());
        ggml_backend_tensor_alloc(buf.get(), all, (char *) ggml_backend_buffer_get_base(buf.get()) + n_bytes);
        ggml_backend_tensor_set(all, data.data(), 0, data.size());
    }
    n_bytes += data.size();
    chunks.push_back(std::move(inputs));
}

bool llama_snapkv_inputs::use(uint32_t i, ggml_cgraph * gf, ggml_backend_dev_t device) const {
    const auto buf = bufs.find(device);
    if (i >= chunks.size() || buf == bufs.end()) {
        return false;
    }
    std::unordered_set<const ggml_tensor *> read;
    for (int n = 0; n < gf->n_nodes; ++n) {
        read.insert(std::begin(gf->nodes[n]->src), std::end(gf->nodes[n]->src));
    }
    std::vector<std::pair<ggml_tensor *, size_t>> found;
    size_t k = 0;
    for (int l = 0; l < gf->n_leafs; ++l) {
        ggml_tensor * t = gf->leafs[l];
        if (!(t->flags & GGML_TENSOR_FLAG_INPUT)) {
            continue;
        }
        const auto & taken = chunks[i];
        if (k >= taken.size() || taken[k].name != t->name || taken[k].size != ggml_nbytes(t)) {
            throw std::runtime_error(format("the graphs of two layer groups differ in their input %s", t->name));
        }
        if (taken[k].offset != NOT_TAKEN) {
            found.emplace_back(t, taken[k].offset);
        } else if (read.count(t)) {
            return false;
        }
        ++k;
    }
    for (const auto & [t, offset] : found) {
        ggml_backend_tensor_alloc(buf->second.get(), t, (char *) ggml_backend_buffer_get_base(buf->second.get()) + offset);
    }
    return true;
}
