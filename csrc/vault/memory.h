// Where the vault's rows are: in host memory, pinned beside a GPU, or in a file that is mapped into it.
#pragma once

#include "ggml-backend.h"

#include <atomic>
#include <cstdint>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

// memory of a segment, one piece for each layer
class llama_snapkv_vault_memory {
public:
    // pieces of these sizes. dir: a file in this folder, which nobody else sees and which goes with the pieces; "": host memory.
    // getting pages takes a second or two for each GiB, so beside a device a thread does it ahead of their use, and has them
    // page-locked. throws std::runtime_error
    llama_snapkv_vault_memory(std::vector<size_t> sizes, ggml_backend_dev_t device, const std::string & dir);
    ~llama_snapkv_vault_memory();

    llama_snapkv_vault_memory(const llama_snapkv_vault_memory &) = delete;
    llama_snapkv_vault_memory & operator=(const llama_snapkv_vault_memory &) = delete;

    // the piece of a layer, once for each. throws std::runtime_error if there is no such memory
    std::shared_ptr<uint8_t> take(size_t i);

private:
    std::vector<std::promise<std::shared_ptr<uint8_t>>> pieces;
    std::atomic<bool> stop = false;
    std::thread ahead;
};
