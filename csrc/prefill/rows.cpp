// Rows that a prefill does not compute, from the vault or from cells, and what it leaves in the vault.
#include "prefill/run.h"

#include "prefill/tail.h"
#include "state/params.h"

#include "llama-impl.h"

#include "ggml-backend.h"

#include <algorithm>
#include <stdexcept>

using access = llama_snapkv_access;

// tokens that are computed after the vault's, at least: with fewer queries attention takes another way on most devices, whose
// rounding would choose other rows than a prefill of the whole prompt
static constexpr uint32_t MIN_NEW = 64;

// what can be taken from the vault, and room in it for the rest
void llama_snapkv_prefill_run::open_vault() {
    vault = &sk.vaults[seq_id];
    if (vault->layers.empty()) {
        vault->layers = llama_snapkv_vault_layers(ctx);
    }
    // the window's queries are computed, and such as are wanted if the vault has not kept them
    const uint32_t query0 = n - llama_snapkv_n_queries(sk.params, n);
    const auto usable = [&](uint32_t pos) { return mem.iswa ? vault->max_tail_pos(pos, ctx.get_model().hparams.n_swa) : pos; };
    n_past = usable(std::min(vault->common_prefix(prompt.tokens, n), n - n_new_min()));
    vault->truncate(n_past);
    if (n_past - vault->n_queries() > query0) {
        n_past = usable(std::min(n_past, query0));
        vault->truncate(n_past);
    }
    const size_t bytes = vault->bytes() + vault->bytes_of(n - n_past, n - std::max(query0, n_past)) + (mem.iswa ? llama_snapkv_tail_bytes(*mem.iswa->get_swa(), n_tail()) : 0);
    if (sk.params.vault_limit > 0 && bytes > sk.params.vault_limit) {
        throw std::invalid_argument(format("the vault needs %.1f MiB for a prompt of %u tokens and its limit is %.1f MiB: raise the limit, or turn the vault off",
                bytes / 1048576.0, n, sk.params.vault_limit / 1048576.0));
    }
    added = vault->reserve(place.device, sk.vault_dir, n - n_past, query0);
}

uint32_t llama_snapkv_prefill_run::n_new_min() const {
    return std::min(n, std::max(w, MIN_NEW));
}

// rows of sliding-window layers that the vault keeps: a window for each place within the prompt's last tokens to go on from
uint32_t llama_snapkv_prefill_run::n_tail() const {
    return std::min(n, ctx.get_model().hparams.n_swa + n_new_min());
}

static const auto & staged(const llama_snapkv_staging & staging, int32_t il) {
    return access::layers(*staging.full)[access::map_layer_ids(*staging.full).at(il)];
}

// K and V of a group's layers for the rows that are not computed
void llama_snapkv_prefill_run::load_rows(uint32_t ig) {
    for (uint32_t ic = ig * groups.size; n_past > 0 && ic < std::min<uint32_t>((ig + 1) * groups.size, groups.ils.size()); ++ic) {
        const auto & to = staged(staging, groups.ils[ic]);
        const auto & own = access::layers(*mem.base)[ic];
        for (const bool is_v : { false, true }) {
            ggml_tensor * t = is_v ? to.v : to.k;
            if (prompt.n_cells > 0) {
                ggml_tensor * from = (is_v ? own.v_stream : own.k_stream)[target.strm[0]];
                std::vector<uint8_t> rows(n_past * t->nb[1]);
                ggml_backend_tensor_get(from, rows.data(), prompt.cell0 * from->nb[1], rows.size());
                ggml_backend_tensor_set(t, rows.data(), 0, rows.size());
                continue;
            }
            vault->each(is_v, ic, 0, n_past, [&](const uint8_t * data, uint32_t pos, uint32_t n_rows) {
                ggml_backend_tensor_set(t, data, pos * t->nb[1], n_rows * t->nb[1]);
            });
        }
    }
}

// K, V and queries of a group's layers for those that were
void llama_snapkv_prefill_run::save_rows() {
    for (const auto & layer : layers) {
        const auto & from = staged(staging, layer.il);
        vault->take_memory(added, layer.ic);
        ggml_backend_tensor_get(from.k, added.k[layer.ic], n_past * from.k->nb[1], (n - n_past) * from.k->nb[1]);
        ggml_backend_tensor_get(from.v, added.v[layer.ic], n_past * from.v->nb[1], (n - n_past) * from.v->nb[1]);

        vault->layers[layer.ic].scale = layer.scale;
        vault->layers[layer.ic].softcap = layer.softcap;
        const int64_t n_rows = n - added.query0;
        const size_t row = layer.head_dim * sizeof(float);
        for (int64_t h = 0; h < layer.n_head; ++h) {
            ggml_backend_tensor_get(staging.queries, added.q[layer.ic].data() + h * n_rows * layer.head_dim,
                    layer.slot * staging.queries->nb[1] + ((h + 1) * staging.n_queries - n_rows) * row, n_rows * row);
        }
    }
}

// the record names positions of tokens, the scores have chosen rows
void llama_snapkv_prefill_run::rows_to_positions() {
    for (size_t ic = 0; ic < record->layers.size(); ++ic) {
        auto & layer = record->layers[ic];
        const uint32_t n_old = before ? before->layers[ic].n_kept : 0; // rows of the kept prefix
        for (size_t i = 0; i < layer.ids.size(); ++i) {
            const uint32_t row = (uint32_t) layer.ids[i];
            const size_t head = i / layer.n_kept;
            layer.ids[i] = row < n_old ? before->layers[ic].ids[head * n_old + row] : (int32_t) row + shift;
        }
    }
}
