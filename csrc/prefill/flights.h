// Graphs of chunks, from their start until the device has ended them: so many at once, that it always has one to go on with.
#pragma once

#include "graph/runner.h"
#include "prefill/progress.h"
#include "staging/hidden.h"

#include "llama-graph.h"

#include <cstdint>
#include <memory>

class llama_snapkv_flights {
public:
    struct flight {
        llama_snapkv_gctx gctx;
        std::unique_ptr<llm_graph_result> res;
        llama_snapkv_event landed;
        bool in_flight = false;
        uint32_t n_passes = 0; // of its tokens, for the caller's progress
    };

    llama_snapkv_flights(llama_snapkv_runner & runner, llama_snapkv_progress & progress) :
        runner(runner), progress(progress) {
    }

    // graphs of so many nodes; device: that computes all of them, or null
    void begin(int64_t max_nodes, ggml_backend_dev_t device);

    // one whose graph can be built anew. throws llama_snapkv_aborted
    flight & next();
    // its graph of a chunk has been started by a backend. throws llama_snapkv_aborted
    void start(flight & f, uint32_t n_passes, ggml_backend_t backend);
    // wait for the device. throws llama_snapkv_aborted
    void land_all();

    // for graphs that are built and not computed
    llm_graph_result & scratch() { return *flights[0].res; }

private:
    void land(flight & f);

    llama_snapkv_runner & runner;
    llama_snapkv_progress & progress;
    flight flights[3];
    uint32_t n_started = 0;
};
