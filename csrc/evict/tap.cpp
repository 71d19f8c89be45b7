#include "evict/tap.h"

#include "evict/rank.h"

#include "llama-impl.h"

#include <stdexcept>

void llama_snapkv_call_tap(const llama_snapkv_task & task, const llama_snapkv_staging & staging, const llama_snapkv_layer & layer, const llama_snapkv_ballot & ballot,
        llama_snapkv_chooser::choice & choice) {
    std::vector<float> q(layer.head_dim * staging.n_queries * layer.n_head);
    std::vector<float> k(ggml_nelements(ballot.k));
    std::vector<float> v(ggml_nelements(ballot.v));
    ggml_tensor * queries = staging.queries[layer.ic];
    ggml_backend_tensor_get(queries, q.data(), layer.slot * queries->nb[1], q.size() * sizeof(float));
    ggml_backend_tensor_get(ballot.k, k.data(), 0, k.size() * sizeof(float));
    ggml_backend_tensor_get(ballot.v, v.data(), 0, v.size() * sizeof(float));

    llama_snapkv_tap_data data = {};
    data.ic = layer.ic;
    data.q = q.data();
    data.k = k.data();
    data.v = v.data();
    data.head_dim = (uint32_t) layer.head_dim;
    data.head_dim_v = (uint32_t) ballot.v->ne[0];
    data.n_queries = staging.n_queries;
    data.n_head = (uint32_t) layer.n_head;
    data.n_prompt = task.n_rows();
    data.n_head_kv = (uint32_t) layer.n_head_kv;
    data.n_kept = task.n_prefix_kept_max();
    data.scale = layer.scale;
    data.softcap = layer.softcap;
    data.ids = choice.rows.data();
    data.coverage = choice.coverage.data();
    task.prompt.tap(&data, task.prompt.tap_data);

    const std::string error = llama_snapkv_check_ids(data.ids, data.n_kept, data.n_head_kv, task.n_prefix());
    if (!error.empty()) {
        throw std::invalid_argument(format("layer %d: the positions chosen %s", layer.il, error.c_str()));
    }
}
