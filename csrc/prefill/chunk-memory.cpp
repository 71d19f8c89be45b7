#include "prefill/chunk-memory.h"

#include "upstream/access.h"

#include "llama-memory-hybrid.h"

using access = llama_snapkv_access;

// contexts give their parts away as constants, for graphs to read
template <typename T>
static T * own(const T * part) {
    return const_cast<T *>(part);
}

llama_snapkv_chunk_memory::llama_snapkv_chunk_memory(const llama_snapkv_memory & mem, llama_kv_cache & staging, llama_kv_cache::slot_info_vec_t sinfos_base,
        llama_kv_cache::slot_info_vec_t sinfos_swa, std::vector<llama_ubatch> ubatches) {
    if (mem.iswa) {
        auto both = std::make_unique<llama_kv_cache_iswa_context>(mem.iswa, std::move(sinfos_base), std::move(sinfos_swa), std::move(ubatches));
        base = own(both->get_base());
        swa = own(both->get_swa());
        mctx = std::move(both);
    } else if (mem.hybrid) {
        auto both = std::make_unique<llama_memory_hybrid_context>(mem.hybrid, std::move(sinfos_base), std::move(ubatches));
        base = own(both->get_attn());
        recr = own(both->get_recr());
        mctx = std::move(both);
    } else {
        auto only = std::make_unique<llama_kv_cache_context>(mem.base, std::move(sinfos_base), std::move(ubatches));
        base = only.get();
        mctx = std::move(only);
    }
    access::kv(*base) = &staging;
}

void llama_snapkv_chunk_memory::apply() {
    if (swa) {
        swa->apply();
    }
    if (recr) {
        recr->apply();
    }
}

void llama_snapkv_chunk_memory::set_n_kv(uint32_t n_kv) {
    access::n_kv(*base) = n_kv;
}

llama_snapkv_recurrent_cell::llama_snapkv_recurrent_cell(const llama_memory_recurrent & mem, llama_seq_id seq_id) :
    seq_id(seq_id) {
    const int32_t i = mem.cells[seq_id].tail;
    pos = i < 0 ? -1 : mem.cells[i].pos;
}

void llama_snapkv_recurrent_cell::restore(llama_memory_recurrent & mem) const {
    const int32_t i = mem.cells[seq_id].tail;
    if (i >= 0) {
        mem.cells[i].pos = pos;
        mem.cells[i].src = pos < 0 ? -1 : i; // -1: an empty state
    }
}
