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

void llama_snapkv_hidden_buffer::allocate(int64_t n_embd, int64_t n_prompt, int64_t chunk, ggml_backend_buffer_type_t buft, ggml_backend_dev_t device) {
    ctx = llama_snapkv_gctx((1 + N_SLOTS) * ggml_tensor_overhead());

    state = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_embd, n_prompt);
    ggml_set_name(state, "snapkv_hidden");
    n_rows = n_prompt;
    const size_t size = ggml_backend_buft_get_alloc_size(buft, state);
    bufs[0] = llama_snapkv_alloc_buffer(buft, size, "hidden state");
    ggml_backend_tensor_alloc(bufs[0].get(), state, ggml_backend_buffer_get_base(bufs[0].get()));
    const bool on_host = ggml_backend_buft_is_host(buft);
    (on_host ? bytes_host : bytes_device) = size;
    if (!on_host || !device) {
        return;
    }

    ggml_backend_buffer_type_t dev_buft = ggml_backend_dev_buffer_type(device);
    size_t offset = 0;
    for (auto & slot : slots) {
        slot = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_embd, chunk);
        offset += GGML_PAD(ggml_backend_buft_get_alloc_size(dev_buft, slot), ggml_backend_buft_get_alignment(dev_buft));
    }
    bufs[1] = llama_snapkv_alloc_buffer(dev_buft, offset, "hidden state of two chunks");
    copier.reset(ggml_backend_dev_init(device, nullptr));
    if (!copier) {
        throw std::runtime_error(format("out of memory: a second stream on %s", ggml_backend_dev_name(device)));
    }
    bytes_device = offset;
    offset = 0;
    for (uint32_t s = 0; s < N_SLOTS; ++s) {
        ggml_backend_tensor_alloc(bufs[1].get(), slots[s], (char *) ggml_backend_buffer_get_base(bufs[1].get()) + offset);
        offset += GGML_PAD(ggml_backend_buft_get_alloc_size(dev_buft, slots[s]), ggml_backend_buft_get_alignment(dev_buft));
        ready[s] = llama_snapkv_event(device);
        done[s] = llama_snapkv_event(device);
    }
}

ggml_tensor * llama_snapkv_hidden_buffer::view(ggml_context * gctx, uint32_t i, int64_t p0, int64_t n_tokens) const {
    ggml_tensor * t = slots[0] ? slots[i % N_SLOTS] : state;
    return ggml_view_2d(gctx, t, t->ne[0], n_tokens, t->nb[1], slots[0] ? 0 : p0 * t->nb[1]);
}

int64_t llama_snapkv_hidden_buffer::n_tokens_of(uint32_t i) const {
    return rows[i + 1] - rows[i];
}

void llama_snapkv_hidden_buffer::load(uint32_t i) {
    ggml_backend_tensor_set_async(copier.get(), slots[i % N_SLOTS], (const char *) state->data + rows[i] * state->nb[1], 0, n_tokens_of(i) * state->nb[1]);
}

void llama_snapkv_hidden_buffer::store(uint32_t i) {
    ggml_backend_tensor_get_async(copier.get(), slots[i % N_SLOTS], (char *) state->data + rows[i] * state->nb[1], 0, n_tokens_of(i) * state->nb[1]);
}

void llama_snapkv_hidden_buffer::begin(bool group_loads, std::vector<int64_t> chunk_rows) {
    loads = group_loads;
    rows = std::move(chunk_rows);
    rows.push_back(n_rows);
    if (!slots[0] || !loads) {
        return;
    }
    for (uint32_t i = 0; i < N_SLOTS && i + 1 < rows.size(); ++i) {
        load(i);
        ready[i].record(copier.get());
    }
}

void llama_snapkv_hidden_buffer::enter(uint32_t i, ggml_backend_t backend) {
    if (slots[0]) {
        ready[i % N_SLOTS].wait(backend);
    }
}

void llama_snapkv_hidden_buffer::leave(uint32_t i, ggml_backend_t backend, bool stores) {
    if (!slots[0]) {
        return;
    }
    const uint32_t s = i % N_SLOTS;
    done[s].record(backend);
    done[s].wait(copier.get());
    if (stores) {
        store(i);
    }
    if (loads && i + N_SLOTS + 1 < rows.size()) {
        load(i + N_SLOTS);
    }
    ready[s].record(copier.get());
}

void llama_snapkv_hidden_buffer::finish() {
    if (copier) {
        ggml_backend_synchronize(copier.get());
    }
}

void llama_snapkv_hidden_buffer::gather(llama_snapkv_runner & runner, const std::vector<int32_t> & chosen, int64_t chunk) {
    finish();
    n_rows = (int64_t) chosen.size();
    // in place, a row goes to where it was or before: what is overwritten has been read
    if (ggml_backend_buffer_is_host(bufs[0].get())) {
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
