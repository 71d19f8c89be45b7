// Input tensors of the chunks' graphs (positions, indices of KV cells), kept on the device. Each layer group runs the same
// chunks, so the inputs are set for the first group and read again by the others. The scheduler would copy them from
// host memory before each graph, and for that wait for the one before.
#pragma once

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <cstdint>
#include <string>
#include <vector>

class llama_snapkv_inputs {
public:
    // take the inputs of the i-th chunk's graph, which are set. chunks come in order. drops everything if they are too
    // many bytes, such as masks
    void take(uint32_t i, const ggml_cgraph * gf, size_t max_bytes);

    // bring them to a device. throws std::runtime_error
    void upload(ggml_backend_buffer_type_t buft);

    // true if graphs can be given their inputs with use()
    bool is_ready() const { return buf != nullptr; }

    // the i-th chunk's graph reads its inputs from the device. before the graph is allocated
    void use(uint32_t i, ggml_cgraph * gf) const;

private:
    struct input {
        std::string name;
        size_t offset = 0;
        size_t size = 0;
    };
    std::vector<std::vector<input>> chunks;
    std::vector<uint8_t> data;
    bool too_large = false;
    ggml_backend_buffer_ptr buf;
};
