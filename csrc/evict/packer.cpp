#include "evict/packer.h"

#include "evict/stock.h"
#include "ops/snapkv-op.h"
#include "upstream/access.h"

#include <cstring>

using access = llama_snapkv_access;

// src: the full cache, dst: the compact one, both [n_embd_gqa, n_cells]
void llama_snapkv_packer::copy_rows(
        ggml_context * gctx, ggml_cgraph * gf, const chosen & kept, ggml_tensor * src, ggml_tensor * dst, ggml_tensor * ids, int64_t cell0) const {
    const uint32_t n_kept = task.n_prefix_kept_max();
    const auto & layer = kept.layer;
    if (!kept.fused) {
        llama_snapkv_graph_evict(gctx, gf, src, dst, ids, layer.n_head_kv, cell0, n_kept, task.n_prefix(), task.window);
        return;
    }
    ggml_backend_t backend = runner.backend_of(place.devs[layer.il]);
    ggml_tensor * to = ggml_view_2d(gctx, dst, dst->ne[0], task.n_kept_max, dst->nb[1], cell0 * dst->nb[1]);
    // a layer that is computed elsewhere than it is kept: pack the rows there, then move them
    const bool moves = !ggml_backend_supports_buft(backend, ggml_backend_buffer_get_type(dst->buffer));
    ggml_tensor * packed = moves ? ggml_new_tensor_2d(gctx, dst->type, dst->ne[0], task.n_kept_max) : to;
    packed = snapkv_op_evict(gctx, packed, src, ids, layer.n_head_kv, task.n_prefix());
    ggml_backend_sched_set_tensor_backend(ctx.get_sched(), packed, backend);
    ggml_build_forward_expand(gf, moves ? ggml_cpy(gctx, packed, to) : packed);
}

void llama_snapkv_packer::pack(const std::vector<chosen> & layers, llama_kv_cache & base, const llama_kv_cache::slot_info & target) {
    const uint32_t n_kept = task.n_prefix_kept_max();
    std::vector<ggml_tensor *> inputs;
    auto build = [&](ggml_context * gctx) {
        inputs.clear();
        ggml_cgraph * gf = ggml_new_graph_custom(gctx, runner.get_max_nodes(), false);
        for (const auto & kept : layers) {
            const auto & from = access::layer(*staging.kv, kept.layer.il);
            const auto & to = access::layer(base, kept.layer.il);
            ggml_tensor * ids = nullptr;
            if (kept.fused || n_kept > 0) { // the fused op has a row for the coverage, too
                ids = ggml_new_tensor_2d(gctx, GGML_TYPE_I32, n_kept + kept.fused, kept.layer.n_head_kv);
                ggml_set_input(ids);
            }
            inputs.push_back(ids);
            const auto sources = access::tensors(from, 0);
            const auto targets = access::tensors(to, target.strm[0]);
            for (size_t i = 0; i < sources.size(); ++i) {
                copy_rows(gctx, gf, kept, sources[i], targets[i], ids, target.head());
            }
        }
        return gf;
    };
    runner.compute(build, [&]() {
        for (size_t i = 0; i < layers.size(); ++i) {
            for (int64_t h = 0; n_kept > 0 && h < layers[i].layer.n_head_kv; ++h) {
                ggml_backend_tensor_set(inputs[i], layers[i].rows->data() + h * n_kept, h * inputs[i]->nb[1], n_kept * sizeof(int32_t));
            }
        }
    });
}

void llama_snapkv_packer::repack(int32_t il, uint32_t n_head_kv, const std::vector<uint32_t> & rows, uint32_t n_rows, llama_kv_cache & base, const llama_kv_cache::slot_info & target) const {
    const uint32_t n_kept = task.n_prefix_kept_max();
    for (ggml_tensor * t : access::tensors(access::layer(base, il), target.strm[0])) {
        const size_t row = t->nb[1];
        const size_t head = row / n_head_kv;
        std::vector<uint8_t> from((n_kept + task.window) * row);
        std::vector<uint8_t> to((n_rows + task.window) * row);
        ggml_backend_tensor_get(t, from.data(), target.head() * row, from.size());
        for (uint32_t h = 0; h < n_head_kv; ++h) {
            for (uint32_t i = 0; i < n_rows; ++i) {
                memcpy(&to[i * row + h * head], &from[rows[h * n_rows + i] * row + h * head], head);
            }
        }
        memcpy(&to[n_rows * row], &from[n_kept * row], task.window * row);
        ggml_backend_tensor_set(t, to.data(), target.head() * row, to.size());
    }
}
