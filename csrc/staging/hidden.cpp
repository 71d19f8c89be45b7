#include "staging/hidden.h"

#include "llama-impl.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

llama_snapkv_event::llama_snapkv_event(ggml_backend_dev_t dev) :
    event(ggml_backend_event_new(dev)) {
}

void llama_snapkv_event::record(ggml_backend_t backend) {
    if (event) {
        ggml_backend_event_record(event.get(), backend);
        recorded = true;
    } else {
        ggml_backend_synchronize(backend);
    }
}

void llama_snapkv_event::wait(ggml_backend_t backend) const {
    if (event && recorded) {
        ggml_backend_event_wait(backend, event.get());
    }
}

void llama_snapkv_event::synchronize() const {
    if (event && recorded) {
        ggml_backend_event_synchronize(event.get());
    }
}

static ggml_backend_ptr make_stream(ggml_backend_dev_t device) {
    ggml_backend_ptr res(ggml_backend_dev_init(device, nullptr));
    if (!res) {
        throw std::runtime_error(format("out of memory: a second stream on %s", ggml_backend_dev_name(device)));
    }
    return res;
}

void llama_snapkv_hidden_buffer::allocate(int64_t n_embd, int64_t n_prompt, int64_t chunk, ggml_backend_buffer_type_t buft, const std::vector<ggml_backend_dev_t> & devices) {
    ctx = llama_snapkv_gctx((1 + N_SLOTS * devices.size()) * ggml_tensor_overhead());

    n_rows = n_prompt;
    if (buft) {
        state = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_embd, n_prompt);
        ggml_set_name(state, "snapkv_hidden");
        const size_t size = ggml_backend_buft_get_alloc_size(buft, state);
        buf = llama_snapkv_alloc_buffer(buft, size, "hidden state");
        ggml_backend_tensor_alloc(buf.get(), state, ggml_backend_buffer_get_base(buf.get()));
        on_host = ggml_backend_buft_is_host(buft);
        (on_host ? bytes_host : bytes_device) = size;
    }
    const bool is_there = state && !on_host; // where the first stage reads it
    if (devices.size() <= (is_there ? 1 : 0)) {
        return;
    }

    for (ggml_backend_dev_t device : devices) {
        lanes.emplace_back();
        lane & l = lanes.back();
        l.copier = make_stream(device);
        for (uint32_t s = 0; s < N_SLOTS; ++s) {
            l.ready[s] = llama_snapkv_event(device);
            l.done[s] = llama_snapkv_event(device);
        }
        if (is_there && lanes.size() == 1) {
            continue;
        }
        ggml_backend_buffer_type_t dev_buft = ggml_backend_dev_buffer_type(device);
        size_t size = 0; // of a slot
        for (auto & slot : l.slots) {
            slot = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_embd, chunk);
            size = GGML_PAD(ggml_backend_buft_get_alloc_size(dev_buft, slot), ggml_backend_buft_get_alignment(dev_buft));
        }
        l.buf = llama_snapkv_alloc_buffer(dev_buft, N_SLOTS * size, "hidden state of two chunks");
        for (uint32_t s = 0; s < N_SLOTS; ++s) {
            ggml_backend_tensor_alloc(l.buf.get(), l.slots[s], (char *) ggml_backend_buffer_get_base(l.buf.get()) + s * size);
        }
        bytes_device += N_SLOTS * size;
    }
    if (is_there) {
        keeper = make_stream(devices[0]);
    }
}

ggml_tensor * llama_snapkv_hidden_buffer::view(ggml_context * gctx, uint32_t stage, uint32_t i, int64_t p0, int64_t n_tokens) const {
    ggml_tensor * slot = lanes.empty() ? nullptr : lanes[stage].slots[i % N_SLOTS];
    ggml_tensor * t = slot ? slot : state;
    return ggml_view_2d(gctx, t, t->ne[0], n_tokens, t->nb[1], slot ? 0 : p0 * t->nb[1]);
}

int64_t llama_snapkv_hidden_buffer::n_tokens_of(uint32_t i) const {
    return rows[i + 1] - rows[i];
}

// n rows of a tensor, without a context: for a copy that is started at once
static ggml_tensor rows_of(const ggml_tensor * t, int64_t row0, int64_t n) {
    ggml_tensor res = *t;
    res.ne[1] = n;
    res.nb[2] = res.nb[3] = n * t->nb[1];
    res.data = (char *) t->data + row0 * t->nb[1];
    return res;
}

// the i-th chunk's part, where a stage has it
ggml_tensor llama_snapkv_hidden_buffer::at(uint32_t stage, uint32_t i) const {
    const ggml_tensor * slot = lanes[stage].slots[i % N_SLOTS];
    return slot ? rows_of(slot, 0, n_tokens_of(i)) : rows_of(state, rows[i], n_tokens_of(i));
}

void llama_snapkv_hidden_buffer::load(uint32_t i) {
    ggml_backend_tensor_set_async(lanes[0].copier.get(), lanes[0].slots[i % N_SLOTS], (const char *) state->data + rows[i] * state->nb[1], 0, n_tokens_of(i) * state->nb[1]);
}

void llama_snapkv_hidden_buffer::store(uint32_t stage, uint32_t i) {
    ggml_backend_t copier = lanes[stage].copier.get();
    if (on_host) {
        ggml_backend_tensor_get_async(copier, lanes[stage].slots[i % N_SLOTS], (char *) state->data + rows[i] * state->nb[1], 0, n_tokens_of(i) * state->nb[1]);
    } else if (lanes[stage].slots[0]) {
        const ggml_tensor from = at(stage, i);
        ggml_tensor to = rows_of(state, rows[i], n_tokens_of(i));
        ggml_backend_tensor_copy_async(copier, keeper.get(), &from, &to);
    }
}

void llama_snapkv_hidden_buffer::begin(bool group_loads, std::vector<int64_t> chunk_rows) {
    loads = group_loads;
    rows = std::move(chunk_rows);
    rows.push_back(n_rows);
    if (lanes.size() > 1) {
        finish(); // what the last stage has stored is read on another device's streams
    }
    if (!on_host || !loads || lanes.empty()) {
        return;
    }
    for (uint32_t i = 0; i < N_SLOTS && i + 1 < rows.size(); ++i) {
        load(i);
        lanes[0].ready[i].record(lanes[0].copier.get());
    }
}

void llama_snapkv_hidden_buffer::enter(uint32_t stage, uint32_t i, ggml_backend_t backend) {
    if (stage < lanes.size() && lanes[stage].slots[0]) {
        lanes[stage].ready[i % N_SLOTS].wait(backend); // a later stage's backend waits for the crossing already
    }
}

void llama_snapkv_hidden_buffer::leave(uint32_t stage, uint32_t i, ggml_backend_t backend, ggml_backend_t next, bool stores) {
    if (lanes.empty()) {
        return;
    }
    lane & l = lanes[stage];
    const uint32_t s = i % N_SLOTS;
    l.done[s].record(backend);
    l.done[s].wait(l.copier.get());
    if (next) {
        lanes[stage + 1].ready[s].wait(l.copier.get());
        const ggml_tensor from = at(stage, i);
        ggml_tensor to = at(stage + 1, i);
        ggml_backend_tensor_copy_async(l.copier.get(), next, &from, &to);
    } else if (stores) {
        store(stage, i);
    }
    if (stage == 0 && on_host && loads && i + N_SLOTS + 1 < rows.size()) {
        load(i + N_SLOTS);
    }
    l.ready[s].record(l.copier.get());
}

void llama_snapkv_hidden_buffer::finish() {
    for (auto & l : lanes) {
        ggml_backend_synchronize(l.copier.get());
    }
    if (keeper) {
        ggml_backend_synchronize(keeper.get());
    }
}

void llama_snapkv_hidden_buffer::gather(llama_snapkv_runner & runner, const std::vector<int32_t> & chosen, int64_t chunk) {
    finish();
    n_rows = (int64_t) chosen.size();
    // in place, a row goes to where it was or before: what is overwritten has been read
    if (on_host) {
        auto * data = (char *) state->data;
        for (int64_t i = 0; i < n_rows; ++i) {
            std::memmove(data + i * state->nb[1], data + chosen[i] * state->nb[1], state->nb[1]);
        }
        return;
    }
    for (int64_t i = 0; i < n_rows; i += chunk) {
        const int64_t n = std::min(chunk, n_rows - i);
        ggml_tensor * ids = nullptr;
        auto build = [&](ggml_context * gctx) {
            ids = ggml_new_tensor_1d(gctx, GGML_TYPE_I32, n);
            ggml_set_input(ids);
            ggml_cgraph * gf = ggml_new_graph_custom(gctx, 16, false);
            ggml_tensor * to = ggml_view_2d(gctx, state, state->ne[0], n, state->nb[1], i * state->nb[1]);
            ggml_build_forward_expand(gf, ggml_cpy(gctx, ggml_get_rows(gctx, state, ids), to));
            return gf;
        };
        runner.compute(build, [&]() { ggml_backend_tensor_set(ids, chosen.data() + i, 0, n * sizeof(int32_t)); });
    }
}

std::vector<uint8_t> llama_snapkv_hidden_buffer::read_tail(int64_t n) {
    finish();
    std::vector<uint8_t> res(n * state->nb[1]);
    ggml_backend_tensor_get(state, res.data(), (n_rows - n) * state->nb[1], res.size());
    return res;
}

void llama_snapkv_hidden_buffer::write_tail(const std::vector<uint8_t> & tail) {
    finish();
    ggml_backend_tensor_set(state, tail.data(), n_rows * state->nb[1] - tail.size(), tail.size());
}
