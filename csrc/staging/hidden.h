// The hidden state between layer groups: F32 [n_embd, n_prompt] (or as many elements for a token as its model's layers pass on), on the device, or in host memory with two slots of a
// chunk on the device. Where a group's layers are computed by several devices, one stage after the other, a chunk's part of it crosses
// from each to the next, into two slots there. Copies run on streams of their own, beside the computation.
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
    // a state of n_embd x n_prompt in a buffer of a type, or none if that is null. devices: of the stages that a group may have, at least
    // one of which has events; if the state is in a device's memory, then in the first one's. none: graphs use the state where it is.
    // throws std::runtime_error
    void allocate(int64_t n_embd, int64_t n_prompt, int64_t chunk, ggml_backend_buffer_type_t buft, const std::vector<ggml_backend_dev_t> & devices);

    // [n_embd, n_tokens] of the i-th chunk, which starts at position p0: what a stage's graph reads and then overwrites
    ggml_tensor * view(ggml_context * ctx, uint32_t stage, uint32_t i, int64_t p0, int64_t n_tokens) const;

    // in this order for each group, chunk and stage; backend computes the stage, and next the one after it, or null.
    //   begin: before the first chunk of a group; loads = false: the group reads no hidden state. rows: where its chunks begin
    //   enter: before the graph of a chunk's stage
    //   leave: after it; stores = false: the group's last stage writes no hidden state
    //   finish: after the last chunk
    void begin(bool loads, std::vector<int64_t> rows);
    void enter(uint32_t stage, uint32_t i, ggml_backend_t backend);
    void leave(uint32_t stage, uint32_t i, ggml_backend_t backend, ggml_backend_t next, bool stores);
    void finish();

    // the first rows become these, ascending; the state has no others from then on. between two groups. throws as runner.compute()
    void gather(llama_snapkv_runner & runner, const std::vector<int32_t> & chosen, int64_t chunk);

    // the last n_rows rows, and what they were, again. between two groups
    std::vector<uint8_t> read_tail(int64_t n_rows);
    void write_tail(const std::vector<uint8_t> & rows);

    explicit operator bool() const { return state != nullptr || !lanes.empty(); }

    size_t bytes_device = 0; // of the state, and of the slots on all devices
    size_t bytes_host = 0;

private:
    static constexpr uint32_t N_SLOTS = 2;

    // on a stage's device
    struct lane {
        ggml_tensor * slots[N_SLOTS] = {}; // null: its graphs use the state itself
        ggml_backend_buffer_ptr buf;
        ggml_backend_ptr copier; // a backend of its own, for its stream
        llama_snapkv_event ready[N_SLOTS]; // the slot is free: what was in it has gone on. of a state in host memory, and the next chunk is in it
        llama_snapkv_event done[N_SLOTS];  // the slot's graph has run
    };

    void load(uint32_t i);
    void store(uint32_t stage, uint32_t i);
    ggml_tensor at(uint32_t stage, uint32_t i) const;
    int64_t n_tokens_of(uint32_t i) const;

    llama_snapkv_gctx ctx;
    ggml_backend_buffer_ptr buf;
    ggml_tensor * state = nullptr;
    int64_t n_rows = 0; // of the state, in use
    bool on_host = false;
    std::vector<lane> lanes; // by stage; none: graphs use the state itself, on one device
    ggml_backend_ptr keeper; // on the state's device, where what comes from another arrives

    bool loads = false;
    std::vector<int64_t> rows; // where the chunks begin, and where the last one ends
};
