#include "prefill/flights.h"

#include <algorithm>
#include <iterator>

void llama_snapkv_flights::begin(int64_t max_nodes, const std::vector<ggml_backend_dev_t> & devices) {
    lanes = std::vector<lane>(std::max<size_t>(1, devices.size()));
    for (size_t stage = 0; stage < lanes.size(); ++stage) {
        for (auto & f : lanes[stage].flights) {
            f.res.reset(new llm_graph_result(max_nodes));
            f.landed = devices.empty() ? llama_snapkv_event() : llama_snapkv_event(devices[stage]);
        }
    }
}

llama_snapkv_flights::flight & llama_snapkv_flights::next(uint32_t stage) {
    lane & l = lanes[stage];
    flight & f = l.flights[l.n_started % std::size(l.flights)];
    land(f);
    return f;
}

void llama_snapkv_flights::start(uint32_t stage, flight & f, uint32_t n_passes, ggml_backend_t backend) {
    f.in_flight = true;
    f.n_passes = n_passes;
    f.landed.record(backend);
    lanes[stage].n_started++;
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
    for (auto & l : lanes) {
        for (uint32_t k = 0; k < std::size(l.flights); ++k) {
            land(l.flights[(l.n_started + k) % std::size(l.flights)]); // the oldest first
        }
    }
}
