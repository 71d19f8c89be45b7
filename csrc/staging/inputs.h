// Input tensors of the chunks' graphs (positions, indices of KV cells), kept on the devices. Each layer group, and each stage of it,
// runs the same chunks, so the inputs are set for the first one and read again by the others. The scheduler would copy them from
// host memory before each graph, and for that wait for the one before.
#pragma once

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <cstdint>
#include <map>
#include <string>
#include <vector>

class llama_snapkv_inputs {
public:
    // on which devices they are wanted, and at most how many bytes of all chunks. the first time take() is called they get buffers
    void begin(const std::vector<ggml_backend_dev_t> & devices, size_t max_bytes);

    // take the inputs of the i-th chunk's graph, which are set, to the devices. chunks come in order. what is too large for the chunks so
    // far is not taken: masks, and a prompt's embeddings, which graphs have in the place of its tokens. throws std::runtime_error
    void take(uint32_t i, const ggml_cgraph * gf, size_t max_bytes_so_far);

    // are those of the i-th chunk taken?
    bool has(uint32_t i) const { return i < chunks.size(); }

    // let the i-th chunk's graph read its inputs from a device, before it is allocated. false if they are not taken, or it reads one that
    // is not; they are to be set then
    bool use(uint32_t i, ggml_cgraph * gf, ggml_backend_dev_t device) const;

private:
    struct input {
        std::string name;
        size_t offset = 0;
        size_t size = 0;
    };
    std::vector<ggml_backend_dev_t> devices;
    size_t max_bytes = 0;
    size_t n_bytes = 0; // taken
    std::vector<std::vector<input>> chunks;
    struct taken {
        size_t offset = 0;
        std::vector<uint8_t> bytes;
    };
    std::map<std::string, taken> last; // those of the chunk before: what is the same in all, as the rotation of a quantized cache, is there once
    std::map<ggml_backend_dev_t, ggml_backend_buffer_ptr> bufs; // graphs in flight read them: as long as this lives
};
