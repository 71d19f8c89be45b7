#include "recall/scan.h"

#include "graph/runner.h"
#include "upstream/access.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

using access = llama_snapkv_access;

static constexpr size_t N_NODES = 32; // and as many for each segment of the vault

llama_snapkv_scan::llama_snapkv_scan(llama_context & ctx, const llama_snapkv_vault & vault, const llama_snapkv_params & params) :
    vault(vault), params(params), backend(access::backend_ptrs(ctx).back()) { // a scheduler has the CPU last
    allocr.reset(ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend)));
}

// [n_tokens, n_queries, n_head]; q: [head_dim, n_queries, n_head]
ggml_tensor * llama_snapkv_scan::logits(ggml_context * gctx, uint32_t ic, int64_t head, ggml_tensor * q, std::vector<ggml_backend_buffer_ptr> & buffers) const {
    const auto & layer = vault.layers[ic];
    ggml_tensor * res = nullptr;
    vault.each(/*is_v =*/false, ic, 0, vault.n_tokens(), [&](const uint8_t * data, uint32_t, uint32_t n_rows) {
        // as it lies in memory, at whatever address: buffers begin where ggml wants them to
        const size_t before = (uintptr_t) data % 64;
        buffers.emplace_back(ggml_backend_cpu_buffer_from_ptr(const_cast<uint8_t *>(data) - before, before + n_rows * layer.row_k));
        ggml_tensor * k = ggml_new_tensor_2d(gctx, layer.type_k, layer.head_dim_k * layer.n_head_kv, n_rows);
        GGML_ASSERT(k->nb[1] == layer.row_k);
        ggml_backend_tensor_alloc(buffers.back().get(), k, const_cast<uint8_t *>(data));
        ggml_tensor * of_head = ggml_view_2d(gctx, k, layer.head_dim_k, n_rows, k->nb[1], head * ggml_row_size(layer.type_k, layer.head_dim_k));
        ggml_tensor * kq = ggml_mul_mat(gctx, of_head, q);
        res = res ? ggml_concat(gctx, res, kq, 0) : kq;
    });
    return res;
}

std::vector<float> llama_snapkv_scan::votes(uint32_t ic, int64_t head, const float * q, int64_t n_queries, int64_t n_head, float scale, float softcap) {
    const size_t max_nodes = N_NODES * (1 + vault.get_segments().size());
    const llama_snapkv_gctx gctx(max_nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(max_nodes, false));
    ggml_context * g = gctx.get();
    std::vector<ggml_backend_buffer_ptr> buffers;
    ggml_tensor * input = ggml_new_tensor_3d(g, GGML_TYPE_F32, vault.layers[ic].head_dim_k, n_queries, n_head);
    ggml_set_input(input);
    ggml_tensor * kq = logits(g, ic, head, input, buffers);
    if (softcap != 0.0f) {
        kq = ggml_scale(g, ggml_tanh(g, ggml_scale(g, kq, scale / softcap)), softcap);
        scale = 1.0f;
    }
    kq = ggml_soft_max_ext(g, kq, nullptr, scale, 0.0f);
    ggml_set_output(kq);
    ggml_cgraph * gf = ggml_new_graph_custom(g, max_nodes, false);
    ggml_build_forward_expand(gf, kq);
    llama_snapkv_require_memory(max_nodes * LLAMA_SNAPKV_PLAN_BYTES_PER_NODE);
    if (!ggml_gallocr_alloc_graph(allocr.get(), gf)) {
        throw std::runtime_error("out of memory: the votes of a recall");
    }
    memcpy(input->data, q, ggml_nbytes(input));
    const ggml_status status = ggml_backend_graph_compute(backend, gf);
    if (status != GGML_STATUS_SUCCESS) {
        throw llama_snapkv_compute_error(status);
    }

    const size_t n = vault.n_tokens();
    std::vector<float> mean(n);
    std::vector<float> joined(n);
    for (int64_t h = 0; h < n_head; ++h) {
        std::fill(joined.begin(), joined.end(), 0.0f);
        for (int64_t i = 0; i < n_queries; ++i) {
            const float * row = (const float *) kq->data + (h * n_queries + i) * n;
            for (size_t j = 0; j < n; ++j) {
                joined[j] = params.aggregation == LLAMA_SNAPKV_AGGREGATION_MAX ? std::max(joined[j], row[j]) : joined[j] + row[j];
            }
        }
        for (size_t j = 0; j < n; ++j) {
            mean[j] += joined[j] / n_head;
        }
    }
    return pool(mean);
}

// as evict/stock.cpp does it for a prefill
std::vector<float> llama_snapkv_scan::pool(const std::vector<float> & votes) const {
    const int64_t n = (int64_t) votes.size();
    const int64_t half = params.kernel_size / 2;
    std::vector<float> res(n);
    const bool is_max = params.pooling == LLAMA_SNAPKV_POOLING_MAX;
    const int64_t first = params.pooling == LLAMA_SNAPKV_POOLING_NOSINK && half > 0 ? 1 : 0;
    double sum = 0.0; // of [i - half, i + half]
    for (int64_t i = first; i < std::min(half, n); ++i) {
        sum += votes[i];
    }
    for (int64_t i = 0; i < n; ++i) {
        const int64_t begin = std::max(first, i - half);
        const int64_t end = std::min(n, i + half + 1);
        if (is_max) {
            res[i] = *std::max_element(votes.begin() + begin, votes.begin() + end);
        } else {
            sum += i + half < n && i + half >= first ? votes[i + half] : 0.0f;
            sum -= i - half - 1 >= first ? votes[i - half - 1] : 0.0f;
            res[i] = (float) (sum / params.kernel_size);
        }
        res[i] += params.self_weight * votes[i];
    }
    return res;
}
