#include "state/recurrent.h"

#include "state/placing.h"
#include "upstream/snapkv-alloc.h"
#include "upstream/snapkv-wipe.h"

#include "llama-context.h"
#include "llama-memory-recurrent.h"

#include "ggml-backend.h"

#include <algorithm>
#include <new>
#include <set>
#include <stdexcept>

// fn(tensor, offset of its row in the state) for each tensor of each layer
template <typename F>
static size_t each_row(const llama_memory_recurrent & recr, F fn) {
    size_t offset = 0;
    for (size_t il = 0; il < recr.r_l.size(); ++il) {
        for (ggml_tensor * t : { recr.r_l[il], recr.s_l[il], recr.p_l[il] }) {
            if (t) {
                fn((int32_t) il, t, offset);
                offset += t->nb[1];
            }
        }
    }
    return offset;
}

size_t llama_snapkv_state_bytes(const llama_memory_recurrent & recr) {
    return each_row(recr, [](int32_t, ggml_tensor *, size_t) {});
}

std::shared_ptr<llama_snapkv_kept_state> llama_snapkv_make_state(const llama_memory_recurrent & recr, llama_pos pos) {
    if (llama_snapkv_alloc_fails("state")) {
        throw std::bad_alloc();
    }
    auto res = std::make_shared<llama_snapkv_kept_state>();
    res->pos = pos;
    res->memory.resize(llama_snapkv_state_bytes(recr));
    res->data = res->memory.data();
    return res;
}

llama_snapkv_kept_state_ptr llama_snapkv_own_state(const llama_memory_recurrent & recr, llama_snapkv_kept_state_ptr state) {
    if (!state->memory.empty()) {
        return state;
    }
    auto res = llama_snapkv_make_state(recr, state->pos);
    std::copy_n(state->data, res->memory.size(), res->memory.begin());
    res->logits = state->logits;
    return res;
}

std::vector<ggml_tensor *> llama_snapkv_state_tensors(const llama_memory_recurrent & recr) {
    std::vector<ggml_tensor *> res;
    each_row(recr, [&](int32_t, ggml_tensor * t, size_t) { res.push_back(t); });
    return res;
}

size_t llama_snapkv_state_row(const llama_memory_recurrent & recr, llama_seq_id seq_id) {
    const int32_t tail = recr.cells[seq_id].tail;
    GGML_ASSERT(tail >= 0);
    const int32_t src = recr.cells[tail].src; // of a sequence that was moved, until it is computed
    return src >= 0 ? src : tail;
}

void llama_snapkv_read_state(const llama_memory_recurrent & recr, llama_seq_id seq_id, int32_t il0, int32_t il1, llama_snapkv_kept_state & state) {
    const size_t row = llama_snapkv_state_row(recr, seq_id);
    each_row(recr, [&](int32_t il, ggml_tensor * t, size_t offset) {
        if (il0 <= il && il < il1) {
            ggml_backend_tensor_get(t, state.memory.data() + offset, row * t->nb[1], t->nb[1]);
        }
    });
}

size_t llama_snapkv_new_state_row(llama_memory_recurrent & recr, llama_seq_id seq_id, llama_pos pos) {
    recr.seq_rm(seq_id, -1, -1);
    llama_batch_allocr allocr(1);
    llama_ubatch one = allocr.ubatch_reserve(1, 1);
    one.pos[0] = pos - 1;
    one.n_seq_id[0] = 1;
    one.seq_id[0] = &seq_id;
    if (!recr.find_slot(one)) {
        throw std::runtime_error("the recurrent layers have no cell for the sequence");
    }
    return recr.cells[seq_id].tail;
}

void llama_snapkv_write_state(llama_memory_recurrent & recr, llama_seq_id seq_id, const llama_snapkv_kept_state & state) {
    const size_t row = llama_snapkv_new_state_row(recr, seq_id, state.pos);
    each_row(recr, [&](int32_t, ggml_tensor * t, size_t offset) {
        ggml_backend_tensor_set(t, state.data + offset, row * t->nb[1], t->nb[1]);
    });
}

void llama_snapkv_wipe_states(llama_context & ctx) {
    llama_snapkv_note_placed();
    const llama_memory_recurrent * recr = llama_snapkv_memory_of(ctx).recr;
    if (!recr || recr->rs_z < 0) {
        return;
    }
    ggml_backend_sched_synchronize(ctx.get_sched()); // what is computed may write there
    std::vector<uint8_t> zeros;
    each_row(*recr, [&](int32_t, ggml_tensor * t, size_t) {
        zeros.resize(std::max(zeros.size(), t->nb[1]));
        ggml_backend_tensor_set(t, zeros.data(), recr->rs_z * t->nb[1], t->nb[1]);
    });
}

void llama_snapkv_own_memory(llama_memory_recurrent & recr, llama_seq_id seq_id) {
    const int32_t i = recr.cells[seq_id].tail;
    if (i < 0 || (recr.cells[i].src == i && recr.cells[i].seq_id.size() == 1)) {
        return;
    }
    auto state = llama_snapkv_make_state(recr, recr.cells[i].pos + 1);
    llama_snapkv_read_state(recr, seq_id, 0, (int32_t) recr.r_l.size(), *state);
    llama_snapkv_write_state(recr, seq_id, *state);
}

uint64_t llama_snapkv_kept_bytes(const llama_snapkv & sk, const llama_snapkv_memory & mem, llama_seq_id seq_id) {
    std::set<const llama_snapkv_kept_state *> counted; // one may be kept twice
    uint64_t res = 0;
    const auto add = [&](const llama_snapkv_states & states) {
        for (const auto & state : states.all()) {
            res += counted.insert(state.get()).second ? state->bytes() : 0;
        }
    };
    add(mem.base->snapkv.states_of(seq_id));
    const auto vault = sk.vaults.find(seq_id);
    if (vault != sk.vaults.end()) {
        add(vault->second.states);
    }
    return res;
}
