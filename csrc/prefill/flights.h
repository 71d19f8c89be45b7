// Graphs of chunks, from their start until the device has ended them: so many at once on each, that it always has one to go on with.
#pragma once

#include "graph/runner.h"
#include "prefill/progress.h"
#include "staging/hidden.h"

#include "llama-graph.h"

#include <cstdint>
#include <memory>
#include <vector>

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

    // graphs of so many nodes; devices: that compute the stages, each all graphs of its own. none: any may compute anything
    void begin(int64_t max_nodes, const std::vector<ggml_backend_dev_t> & devices);

    // one whose graph of a stage can be built anew. throws llama_snapkv_aborted
    flight & next(uint32_t stage);
    // its graph of a chunk has been started by a backend. throws llama_snapkv_aborted
    void start(uint32_t stage, flight & f, uint32_t n_passes, ggml_backend_t backend);
    // wait for the device. throws llama_snapkv_aborted
    void land_all();

    // for graphs that are built and not computed
    llm_graph_result & scratch() { return *lanes[0].flights[0].res; }

private:
    struct lane { // of a stage
        flight flights[3];
        uint32_t n_started = 0;
    };

    void land(flight & f);

    llama_snapkv_runner & runner;
    llama_snapkv_progress & progress;
    std::vector<lane> lanes;
};
