#include "prefill/flights.h"

#include <iterator>

void llama_snapkv_flights::begin(int64_t max_nodes, ggml_backend_dev_t device) {
    for (auto & f : flights) {
        f.res.reset(new llm_graph_result(max_nodes));
        f.landed = device ? llama_snapkv_event(device) : llama_snapkv_event();
    }
}

llama_snapkv_flights::flight & llama_snapkv_flights::next() {
    flight & f = flights[n_started % std::size(flights)];
    land(f);
    return f;
}

void llama_snapkv_flights::start(flight & f, uint32_t n_passes, ggml_backend_t backend) {
    f.in_flight = true;
    f.n_passes = n_passes;
    f.landed.record(backend);
    n_started++;
    if (!f.landed.is_supported()) {
        land_all();
    }
}

void llama_snapkv_flights::land(flight & f) {
    if (!f.in_flight) {
        return;
    }
    f.landed.synchronize();
    f.in_flight = false;
    progress.advance(f.n_passes);
}

void llama_snapkv_flights::land_all() {
    runner.finish();
    for (uint32_t k = 0; k < std::size(flights); ++k) {
        land(flights[(n_started + k) % std::size(flights)]); // the oldest first
    }
}
