// How the prompt goes through the device: cached layers in groups, and how much of it is there at once.
#pragma once

#include "staging/place.h"
#include "state/context.h"

#include <cstdint>
#include <vector>

// base-cache layers of the model, in order, and how they fall into groups
struct llama_snapkv_groups {
    llama_snapkv_groups() = default;
    llama_snapkv_groups(const llama_model & model, const llama_kv_cache & base);

    std::vector<int32_t> ils;  // cached layers
    std::vector<std::vector<int32_t>> readers; // llama_snapkv_readers() of each. they are in its group
    int32_t n_layer = 0;      // layers that the model's graph has
    uint32_t size = 1;      // G

    uint32_t count() const { return ((uint32_t) ils.size() + size - 1) / size; }

    // layers of group ig: from the one after the previous group's last cached layer, the last group to the model's end
    int32_t il0(uint32_t ig) const { return ig == 0 ? 0 : il1(ig - 1); }
    int32_t il1(uint32_t ig) const { return ig + 1 >= count() ? n_layer : ils[(ig + 1) * size - 1] + 1; }

    // cached layers of group ig
    uint32_t ic0(uint32_t ig) const { return ig * size; }
    uint32_t ic1(uint32_t ig) const { return ig + 1 >= count() ? (uint32_t) ils.size() : (ig + 1) * size; }
};

// bytes kept free beside what a plan counts: the pools of the backend, where a shortage ends the process
static constexpr size_t LLAMA_SNAPKV_MARGIN = 320u << 20;

// how much of the prompt is on the device at once
struct llama_snapkv_plan {
    uint32_t group = 1;       // G
    uint32_t chunk = 0;       // tokens
    bool hidden_host = false; // the hidden state is in host memory, beside a GPU
    bool deals = false; // a group's layers are dealt to several GPUs
    size_t bytes = 0; // estimated, on the device, or on the one of several that has most
};

// plans to try one after the other: the default first, or the fastest of those that seem to fit the free memory of the device that has least.
// never empty; parameters that are given are kept
std::vector<llama_snapkv_plan> llama_snapkv_make_plans(llama_context & ctx, const llama_snapkv_memory & mem, const llama_snapkv_params & params,
        const llama_snapkv_groups & groups, const llama_snapkv_place & place, uint32_t n_prompt);
