// What a prefill does not compute: rows from cells of the sequence or from its vault, and states of recurrent layers. And what it
// leaves in the vault, and of states.
#pragma once

#include "staging/layer.h"
#include "staging/staging.h"
#include "state/context.h"
#include "state/task.h"
#include "vault/vault.h"

#include "llama-kv-cache-iswa.h"

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

class llama_snapkv_known_rows {
public:
    // looks into the vault where one is kept, and drops what it cannot use of it. device: whose memory the vault is beside, or
    // null. throws std::invalid_argument, std::runtime_error
    llama_snapkv_known_rows(llama_context & ctx, llama_snapkv & sk, const llama_snapkv_memory & mem, const llama_snapkv_task & task, ggml_backend_dev_t device);

    uint32_t n() const { return n_past; } // the first rows

    // sliding-window layers get those that they need. false if they have no cells for them
    bool load_swa() const;
    // recurrent layers get the state of the last one. throws std::runtime_error
    void load_state() const;
    // K and V of layers il into the staging cache; stream: of the cells
    void load(const llama_snapkv_staging & staging, const llama_snapkv_groups & groups, uint32_t ig, uint32_t stream) const;

    // layers are computed: of the queries that are wanted, the vault has those of rows that were not
    void load_queries(const llama_snapkv_staging & staging, const std::vector<llama_snapkv_layer> & layers) const;

    // of layers that are computed, K, V and queries of the other rows are for the vault; nothing without one. throws std::runtime_error
    void save(const llama_snapkv_staging & staging, const std::vector<llama_snapkv_layer> & layers);
    // rows where chunks of n_chunk tokens have to end, ascending: the vault keeps the states of recurrent layers there. throws std::bad_alloc
    std::vector<uint32_t> make_stops(uint32_t n_chunk);
    // of layers from il0 to il1 - 1, before a row, where that is wanted
    bool wants_state(uint32_t row) const { return stops.count(row) > 0; }
    void save_state(uint32_t row, int32_t il0, int32_t il1);

    // all layers are computed, and the sequence has its cells; bytes of the vault
    uint64_t close();

private:
    void open_vault(llama_snapkv & sk, ggml_backend_dev_t device);
    uint32_t usable(uint32_t pos) const;
    std::vector<uint32_t> state_rows() const;
    uint32_t n_new_min() const;
    uint32_t n_tail() const;

    llama_context & ctx;
    const llama_snapkv_memory & mem;
    const llama_snapkv_task & task;
    uint32_t n_past;
    uint32_t n_same = 0;                  // rows that the vault has; the last ones may be computed again
    llama_snapkv_vault * vault = nullptr; // null: none is wanted
    llama_snapkv_vault::segment added;    // what this prefill adds to it
    std::map<uint32_t, std::shared_ptr<llama_snapkv_kept_state>> stops; // states that it adds, by row
    std::shared_ptr<llama_snapkv_kept_state> last; // that behind all rows, for the sequence, too
};
