// The hidden state between layer groups: F32 [n_embd, n_prompt] (or as many elements for a token as its model's layers pass on), on the device, or in host memory with two slots of a
// chunk on the device. Copies then run on a stream of their own, beside the computation.
#pragma once

#include "graph/runner.h"
#include "upstream/snapkv-alloc.h"

#include <cstdint>
#include <memory>
#include <vector>

// in a backend's order of work, a point that another backend can wait for
class llama_snapkv_event {
public:
    llama_snapkv_event() = default;
    explicit llama_snapkv_event(ggml_backend_dev_t dev);

    void record(ggml_backend_t backend); // without events on the device: waits for the backend
    void wait(ggml_backend_t backend) const; // the backend waits
    void synchronize() const; // the host waits

    bool is_supported() const { return event != nullptr; }

private:
    ggml_backend_event_ptr event;
    bool recorded = false;
};

class llama_snapkv_hidden_buffer {
public:
    // where a state of n_embd x n_prompt is to be: in a buffer of a type; if that is host memory and device is not null,
    // in passing on the device. throws std::runtime_error
    void allocate(int64_t n_embd, int64_t n_prompt, int64_t chunk, ggml_backend_buffer_type_t buft, ggml_backend_dev_t device);

    // [n_embd, n_tokens] of the i-th chunk, which starts at position p0: what a graph reads and then overwrites
    ggml_tensor * view(ggml_context * ctx, uint32_t i, int64_t p0, int64_t n_tokens) const;

    // in this order for each group and chunk; backend computes the chunk's graph.
    //   begin: before the first chunk of a group; loads = false: the group reads no hidden state. rows: where its chunks begin
    //   enter: before a chunk's graph
    //   leave: after it; stores = false: the group writes no hidden state
    //   finish: after the last chunk
    void begin(bool loads, std::vector<int64_t> rows);
    void enter(uint32_t i, ggml_backend_t backend);
    void leave(uint32_t i, ggml_backend_t backend, bool stores);
    void finish();

    // the first rows become these, ascending; the state has no others from then on. between two groups. throws as runner.compute()
    void gather(llama_snapkv_runner & runner, const std::vector<int32_t> & chosen, int64_t chunk);

    // the last n_rows rows, and what they were, again. between two groups
    std::vector<uint8_t> read_tail(int64_t n_rows);
    void write_tail(const std::vector<uint8_t> & rows);

    explicit operator bool() const { return state != nullptr; }

    size_t bytes_device = 0;
    size_t bytes_host = 0;

private:
    static constexpr uint32_t N_SLOTS = 2;

    void load(uint32_t i);
    void store(uint32_t i);
    int64_t n_tokens_of(uint32_t i) const;

    llama_snapkv_gctx ctx;
    ggml_backend_buffer_ptr bufs[2];
    ggml_tensor * state = nullptr;
    int64_t n_rows = 0; // of the state, in use
    ggml_tensor * slots[N_SLOTS] = {}; // null: graphs use the state itself

    ggml_backend_ptr copier; // a backend of its own on the device, for its stream
    llama_snapkv_event ready[N_SLOTS]; // the slot is loaded, and what was in it is stored
    llama_snapkv_event done[N_SLOTS];  // the slot's graph has run

    bool loads = false;
    std::vector<int64_t> rows; // where the chunks begin, and where the last one ends
};
