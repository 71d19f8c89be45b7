#include "prefill/rows.h"

#include "prefill/tail.h"
#include "state/recurrent.h"
#include "upstream/access.h"

#include "llama-impl.h"

#include "ggml-backend.h"

#include <algorithm>
#include <stdexcept>

using access = llama_snapkv_access;

// tokens that are computed after the vault's, at least: with fewer queries attention takes another way on most devices, whose
// rounding would choose other rows than a prefill of the whole prompt
static constexpr uint32_t MIN_NEW = 64;

// a state is kept so many tokens before the end as the least that is computed, and each time so much farther from it: where a prompt
// parts from the vault, less than that many times the tokens are computed that would have to be
static constexpr uint32_t STATE_STEP = 4;

llama_snapkv_known_rows::llama_snapkv_known_rows(llama_context & ctx, llama_snapkv & sk, const llama_snapkv_memory & mem, const llama_snapkv_task & task, ggml_backend_dev_t device) :
    ctx(ctx), mem(mem), task(task), n_past(task.n_cells) {
    if (mem.recr) {
        last = llama_snapkv_make_state(*mem.recr, task.end());
    }
    if (sk.params.vault && task.n_cells == 0) {
        open_vault(sk, device);
    }
}

// from where, up to a position, a prompt can go on
uint32_t llama_snapkv_known_rows::usable(uint32_t pos) const {
    if (mem.iswa) {
        return vault->max_tail_pos(pos, ctx.get_model().hparams.n_swa);
    }
    if (mem.recr) {
        const auto state = vault->states.last((llama_pos) pos);
        return state ? (uint32_t) state->pos : 0;
    }
    return pos;
}

// what can be taken from the vault, and room in it for the rest
void llama_snapkv_known_rows::open_vault(llama_snapkv & sk, ggml_backend_dev_t device) {
    const uint32_t n = task.n_rows();
    vault = &sk.vaults[task.prompt.seq_id];
    if (vault->layers.empty()) {
        vault->layers = llama_snapkv_vault_layers(ctx);
    }
    // the window's queries are computed, and such as are wanted if the vault has not kept them
    const uint32_t query0 = n - task.n_queries();
    n_same = std::min(vault->common_prefix(task.prompt.tokens, n), n - task.window);
    vault->truncate(n_same);
    if (n_same - vault->n_queries() > query0) {
        n_same = std::min(n_same, query0);
        vault->truncate(n_same);
    }
    n_past = usable(std::min(n_same, n - n_new_min()));
    size_t bytes = vault->bytes() + vault->bytes_of(n - n_same, n - std::max(query0, n_same));
    if (mem.iswa) {
        bytes += llama_snapkv_tail_bytes(*mem.iswa->get_swa(), n_tail());
    }
    if (mem.recr) {
        const size_t n_states = vault->states.all().size() + 1 + state_rows().size();
        bytes += std::min(n_states, llama_snapkv_states::MAX) * last->memory.size();
    }
    if (sk.params.vault_limit > 0 && bytes > sk.params.vault_limit) {
        throw std::invalid_argument(format("the vault needs %.1f MiB for a prompt of %u tokens and its limit is %.1f MiB: raise the limit, or turn the vault off",
                bytes / 1048576.0, n, sk.params.vault_limit / 1048576.0));
    }
    added = vault->reserve(device, task.prompt.vault_dir ? task.prompt.vault_dir : "", n - n_same, query0);
}

// ascending
std::vector<uint32_t> llama_snapkv_known_rows::state_rows() const {
    std::vector<uint32_t> res;
    for (uint64_t n = n_new_min(); n < task.n_rows() - n_past; n *= STATE_STEP) {
        res.insert(res.begin(), (uint32_t) (task.n_rows() - n));
    }
    return res;
}

std::vector<uint32_t> llama_snapkv_known_rows::make_stops(uint32_t n_chunk) {
    stops.clear();
    std::vector<uint32_t> res;
    uint32_t from = n_past;
    for (uint32_t row : vault && mem.recr ? state_rows() : std::vector<uint32_t>()) {
        // where a chunk would be too small, its tokens go into the next one
        const uint32_t n_last = (row - from) % n_chunk;
        row -= n_last < MIN_NEW ? n_last : 0;
        if (row > from) {
            res.push_back(row);
            stops[row] = llama_snapkv_make_state(*mem.recr, (llama_pos) row);
            from = row;
        }
    }
    return res;
}

void llama_snapkv_known_rows::save_state(uint32_t row, int32_t il0, int32_t il1) {
    llama_snapkv_read_state(*mem.recr, task.prompt.seq_id, il0, il1, *stops.at(row));
}

uint32_t llama_snapkv_known_rows::n_new_min() const {
    return std::min(task.n_rows(), std::max(task.window, MIN_NEW));
}

// rows of sliding-window layers that the vault keeps: a window for each place within the prompt's last tokens to go on from
uint32_t llama_snapkv_known_rows::n_tail() const {
    return std::min(task.n_rows(), ctx.get_model().hparams.n_swa + n_new_min());
}

bool llama_snapkv_known_rows::load_swa() const {
    if (!mem.iswa) {
        return true;
    }
    llama_kv_cache & swa = *mem.iswa->get_swa();
    swa.seq_rm(task.prompt.seq_id, task.pos0, -1);
    if (!vault || n_past == 0) {
        return true;
    }
    const uint32_t n_swa = ctx.get_model().hparams.n_swa;
    return llama_snapkv_load_tail(swa, task.prompt.seq_id, n_past, n_swa, *vault->find_tail(n_past, n_swa));
}

void llama_snapkv_known_rows::load_state() const {
    if (mem.recr && vault && n_past > 0) {
        llama_snapkv_write_state(*mem.recr, task.prompt.seq_id, *vault->states.last((llama_pos) n_past));
    }
}

void llama_snapkv_known_rows::load(const llama_snapkv_staging & staging, const llama_snapkv_groups & groups, uint32_t ig, uint32_t stream) const {
    for (uint32_t ic = groups.ic0(ig); n_past > 0 && ic < groups.ic1(ig); ++ic) {
        const auto to = access::tensors(access::layer(*staging.kv, groups.ils[ic]), 0);
        const auto own = access::tensors(access::layer(*mem.base, groups.ils[ic]), stream);
        for (size_t j = 0; j < to.size(); ++j) {
            ggml_tensor * t = to[j];
            if (task.n_cells > 0) {
                ggml_tensor * from = own[j];
                std::vector<uint8_t> rows(n_past * t->nb[1]);
                ggml_backend_tensor_get(from, rows.data(), task.cell0 * from->nb[1], rows.size());
                ggml_backend_tensor_set(t, rows.data(), 0, rows.size());
                continue;
            }
            vault->each(/*is_v =*/j == 1, ic, 0, n_past, [&](const uint8_t * data, uint32_t pos, uint32_t n_rows) {
                ggml_backend_tensor_set(t, data, pos * t->nb[1], n_rows * t->nb[1]);
            });
        }
    }
}

void llama_snapkv_known_rows::load_queries(const llama_snapkv_staging & staging, const std::vector<llama_snapkv_layer> & layers) const {
    const uint32_t query0 = task.n_rows() - staging.n_queries;
    if (!vault || n_past <= query0) {
        return;
    }
    const int64_t n = vault->n_queries(); // they reach back to query0, or open_vault() would have these rows computed
    const int64_t first = vault->n_tokens() - n;
    for (const auto & layer : layers) {
        std::vector<float> q(n * layer.head_dim * layer.n_head);
        vault->read_queries(layer.ic, q.data());
        const size_t row = layer.head_dim * sizeof(float);
        ggml_tensor * queries = staging.queries[layer.ic];
        for (int64_t h = 0; h < layer.n_head; ++h) {
            ggml_backend_tensor_set(queries, q.data() + (h * n + query0 - first) * layer.head_dim, layer.slot * queries->nb[1] + h * staging.n_queries * row,
                    (n_past - query0) * row);
        }
    }
}

void llama_snapkv_known_rows::save(const llama_snapkv_staging & staging, const std::vector<llama_snapkv_layer> & layers) {
    if (!vault) {
        return;
    }
    const uint32_t n = task.n_rows();
    for (const auto & layer : layers) {
        const auto from = access::tensors(access::layer(*staging.kv, layer.il), 0);
        vault->take_memory(added, layer.ic);
        for (size_t j = 0; j < from.size(); ++j) {
            const size_t row_size = from[j]->nb[1];
            ggml_backend_tensor_get(from[j], (j == 1 ? added.v : added.k)[layer.ic], n_same * row_size, (n - n_same) * row_size);
        }

        vault->layers[layer.ic].scale = layer.scale;
        vault->layers[layer.ic].softcap = layer.softcap;
        const int64_t n_rows = n - added.query0;
        const size_t row = layer.head_dim * sizeof(float);
        const ggml_tensor * queries = staging.queries[layer.ic];
        for (int64_t h = 0; h < layer.n_head; ++h) {
            ggml_backend_tensor_get(queries, added.q[layer.ic].data() + h * n_rows * layer.head_dim,
                    layer.slot * queries->nb[1] + ((h + 1) * staging.n_queries - n_rows) * row, n_rows * row);
        }
    }
}

uint64_t llama_snapkv_known_rows::close() {
    if (last) {
        llama_snapkv_read_state(*mem.recr, task.prompt.seq_id, 0, (int32_t) ctx.get_model().hparams.n_layer(), *last);
        const float * logits = access::logits(ctx).data;
        last->logits.assign(logits, logits + ctx.get_model().vocab.n_tokens());
        mem.base->snapkv.keep_state(task.prompt.seq_id, last);
    }
    if (!vault) {
        return 0;
    }
    if (mem.iswa) {
        llama_snapkv_save_tail(*mem.iswa->get_swa(), task.prompt.seq_id, task.n_rows(), n_tail(), added);
    }
    vault->append(std::move(added), task.prompt.tokens + n_same);
    for (const auto & [_, state] : stops) {
        vault->states.add(state);
    }
    if (last) {
        vault->states.add(last);
    }
    return vault->bytes();
}
