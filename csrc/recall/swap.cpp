#include "recall/swap.h"

#include "upstream/access.h"
#include "upstream/snapkv-alloc.h"

#include "llama-context.h"
#include "llama-impl.h"

#include <stdexcept>

using access = llama_snapkv_access;

llama_snapkv_swap::llama_snapkv_swap(llama_context & ctx, llama_kv_cache & base, llama_seq_id seq_id, const llama_snapkv_vault & vault, const llama_snapkv_ranked & ranked, uint32_t cell0) :
    ctx(ctx), base(base), seq_id(seq_id), vault(vault), ranked(ranked), cell0(cell0) {
    const auto buft_of = [this](uint32_t ic) { return ggml_backend_buffer_get_type(tensor(ic, false)->buffer); };
    const uint32_t n = (uint32_t) ranked.changes.size();
    for (uint32_t ic = 0; ic < n;) {
        if (ggml_backend_buft_is_host(buft_of(ic))) {
            on_host.push_back(ic++);
            continue;
        }
        uint32_t end = ic + 1;
        while (end < n && buft_of(end) == buft_of(ic)) {
            ++end;
        }
        plan(ic, end, buft_of(ic));
        ic = end;
    }
}

ggml_tensor * llama_snapkv_swap::tensor(uint32_t ic, bool is_v) const {
    return access::tensors(access::layer(base, ranked.record->layers[ic].il), base.get_stream(seq_id))[is_v];
}

size_t llama_snapkv_swap::head_bytes(uint32_t ic, bool is_v) const {
    const auto & layer = vault.layers[ic];
    return (is_v ? layer.row_v : layer.row_k) / layer.n_head_kv;
}

size_t llama_snapkv_swap::offset(uint32_t ic) const {
    size_t res = 0;
    for (uint32_t i = 0; i < ic; ++i) {
        res += ranked.changes[i].size() * (head_bytes(i, false) + head_bytes(i, true));
    }
    return res;
}

uint32_t llama_snapkv_swap::cell(uint32_t ic) const {
    return cell0 + ranked.record->max_kept() - ranked.record->layers[ic].n_kept;
}

void llama_snapkv_swap::plan(uint32_t ic0, uint32_t ic1, ggml_backend_buffer_type_t buft) {
    on_device dev = {};
    dev.ic0 = ic0;
    dev.ic1 = ic1;
    for (uint32_t ic = ic0; ic < ic1; ++ic) {
        const int64_t n_head = vault.layers[ic].n_head_kv;
        for (const auto & c : ranked.changes[ic]) {
            dev.at.push_back((int64_t) (cell(ic) + c.i) * n_head + c.head);
        }
    }
    if (dev.at.empty()) {
        return;
    }
    for (ggml_backend_t backend : access::backend_ptrs(ctx)) {
        if (!dev.backend && ggml_backend_supports_buft(backend, buft)) {
            dev.backend = backend;
        }
    }
    if (!dev.backend) {
        throw std::runtime_error(format("layers of the cache are in %s, which the context does not compute with: decode without recall", ggml_backend_buft_name(buft)));
    }
    const size_t n_tensors = 10 * (ic1 - ic0) + 8;
    dev.gctx.reset(ggml_init({ n_tensors * ggml_tensor_overhead() + ggml_graph_overhead_custom(n_tensors, false), nullptr, /*no_alloc =*/true }));
    if (!dev.gctx) {
        throw std::bad_alloc();
    }
    ggml_context * g = dev.gctx.get();
    dev.gf = ggml_new_graph_custom(g, n_tensors, false);
    dev.rows = ggml_new_tensor_1d(g, GGML_TYPE_F32, (int64_t) ((offset(ic1) - offset(ic0)) / sizeof(float)));
    dev.targets = ggml_new_tensor_1d(g, GGML_TYPE_I64, (int64_t) dev.at.size());
    size_t at_row = 0;
    size_t at_target = 0;
    for (uint32_t ic = ic0; ic < ic1; ++ic) {
        const int64_t n = (int64_t) ranked.changes[ic].size();
        ggml_tensor * targets = ggml_view_1d(g, dev.targets, n, at_target * sizeof(int64_t));
        at_target += n;
        for (const bool is_v : { false, true }) {
            const size_t head = head_bytes(ic, is_v);
            if (n == 0 || head == 0) {
                continue;
            }
            // as raw blocks, whatever their type: a row for each cell and head
            ggml_tensor * t = tensor(ic, is_v);
            GGML_ASSERT(head % sizeof(float) == 0 && t->nb[1] == head * vault.layers[ic].n_head_kv);
            ggml_tensor * raw = ggml_new_tensor_2d(g, GGML_TYPE_F32, (int64_t) (head / sizeof(float)), t->ne[1] * vault.layers[ic].n_head_kv);
            ggml_backend_tensor_alloc(t->buffer, raw, t->data);
            ggml_tensor * rows = ggml_view_2d(g, dev.rows, raw->ne[0], n, head, at_row);
            at_row += n * head;
            ggml_build_forward_expand(dev.gf, ggml_set_rows(g, raw, rows, targets));
        }
    }
    dev.buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(g, buft));
    if (!dev.buffer) {
        throw std::runtime_error("out of memory: the rows of a recall, on the device");
    }
    devices.push_back(std::move(dev));
}

void llama_snapkv_swap::write_host(uint32_t ic) {
    size_t from = offset(ic);
    for (const bool is_v : { false, true }) {
        const size_t head = head_bytes(ic, is_v);
        if (head == 0) {
            continue;
        }
        ggml_tensor * t = tensor(ic, is_v);
        for (const auto & c : ranked.changes[ic]) {
            ggml_backend_tensor_set(t, ranked.rows.data() + from, (cell(ic) + c.i) * t->nb[1] + c.head * head, head);
            from += head;
        }
    }
}

size_t llama_snapkv_swap::run() {
    for (const uint32_t ic : on_host) {
        write_host(ic);
    }
    for (const auto & dev : devices) {
        ggml_backend_tensor_set(dev.rows, ranked.rows.data() + offset(dev.ic0), 0, ggml_nbytes(dev.rows));
        ggml_backend_tensor_set(dev.targets, dev.at.data(), 0, ggml_nbytes(dev.targets));
        const ggml_status status = ggml_backend_graph_compute(dev.backend, dev.gf);
        if (status != GGML_STATUS_SUCCESS) {
            throw std::runtime_error(format("%s failed to write the rows of a recall (status %d): prefill the prompt again", ggml_backend_name(dev.backend), (int) status));
        }
    }
    return ranked.rows.size();
}
