#include "state/looks.h"

#include "state/recurrent.h"

#include "llama-memory-recurrent.h"

#include "ggml-backend.h"

#include <map>

llama_snapkv_looks::llama_snapkv_looks(const llama_memory_recurrent & recr, uint32_t n_seqs) {
    const auto tensors = llama_snapkv_state_tensors(recr);
    std::map<ggml_backend_buffer_type_t, size_t> index; // of ctxs
    for (ggml_tensor * t : tensors) {
        const auto [it, is_new] = index.emplace(ggml_backend_buffer_get_type(t->buffer), ctxs.size());
        if (is_new) {
            ctxs.emplace_back(tensors.size() * ggml_tensor_overhead());
        }
        kept.push_back(ggml_new_tensor_2d(ctxs[it->second].get(), t->type, t->ne[0], n_seqs));
    }
    for (const auto & [buft, i] : index) {
        size_t size = 0;
        for (ggml_tensor * t = ggml_get_first_tensor(ctxs[i].get()); t; t = ggml_get_next_tensor(ctxs[i].get(), t)) {
            size += GGML_PAD(ggml_backend_buft_get_alloc_size(buft, t), ggml_backend_buft_get_alignment(buft));
        }
        bufs.push_back(llama_snapkv_alloc_buffer(buft, size, "looks"));
        ggml_tallocr alloc = ggml_tallocr_new(bufs.back().get());
        for (ggml_tensor * t = ggml_get_first_tensor(ctxs[i].get()); t; t = ggml_get_next_tensor(ctxs[i].get(), t)) {
            ggml_tallocr_alloc(&alloc, t);
        }
    }
}

void llama_snapkv_looks::keep(const llama_memory_recurrent & recr, llama_seq_id seq_id, size_t row) const {
    copy(recr, seq_id, row, false);
}

void llama_snapkv_looks::bring_back(const llama_memory_recurrent & recr, llama_seq_id seq_id, size_t row) const {
    copy(recr, seq_id, row, true);
}

void llama_snapkv_looks::copy(const llama_memory_recurrent & recr, llama_seq_id seq_id, size_t row, bool is_back) const {
    const auto tensors = llama_snapkv_state_tensors(recr);
    llama_snapkv_gctx ctx(2 * tensors.size() * ggml_tensor_overhead());
    const auto view = [&](ggml_tensor * t, size_t i) {
        ggml_tensor * res = ggml_view_1d(ctx.get(), t, t->ne[0], i * t->nb[1]);
        ggml_backend_view_init(res);
        return res;
    };
    for (size_t i = 0; i < tensors.size(); ++i) {
        ggml_tensor * own = view(tensors[i], row);
        ggml_tensor * aside = view(kept[i], seq_id);
        ggml_backend_tensor_copy(is_back ? aside : own, is_back ? own : aside);
    }
}
