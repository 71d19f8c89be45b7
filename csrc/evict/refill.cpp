// The compact cache, filled anew from the vault.
#include "snapkv.h"

#include "evict/rank.h"
#include "state/cells.h"
#include "state/context.h"
#include "state/lock.h"
#include "state/recurrent.h"
#include "upstream/access.h"

#include "llama-impl.h"

#include <cstring>
#include <stdexcept>

using access = llama_snapkv_access;

namespace {

struct no_cells : std::exception {};

// rows of a layer as the compact cache holds them: for each head its own, then the window
std::vector<uint8_t> gather(const llama_snapkv_vault & vault, bool is_v, uint32_t ic, const llama_snapkv_record::layer & kept, uint32_t window) {
    const auto & layer = vault.layers[ic];
    const size_t row = is_v ? layer.row_v : layer.row_k;
    const size_t head = row / layer.n_head_kv;
    const uint32_t n = vault.n_tokens();
    const uint32_t n_kept = kept.n_kept;
    std::vector<uint8_t> rows((n_kept + window) * row);

    const bool all = n_kept + window == n;
    for (int64_t h = 0; !all && h < layer.n_head_kv; ++h) {
        for (uint32_t i = 0; i < n_kept; ++i) {
            memcpy(rows.data() + i * row + h * head, vault.row(is_v, ic, kept.ids[h * n_kept + i]) + h * head, head);
        }
    }
    const uint32_t pos0 = all ? 0 : n - window;
    vault.each(is_v, ic, pos0, n, [&](const uint8_t * data, uint32_t pos, uint32_t n_rows) {
        memcpy(rows.data() + ((all ? 0 : n_kept) + pos - pos0) * row, data, n_rows * row);
    });
    return rows;
}

void keep(llama_context & ctx, const llama_snapkv_vault & vault, llama_seq_id seq_id, const uint32_t * n_kept, const int32_t * ids) {
    const auto mem = llama_snapkv_memory_of(ctx);
    llama_kv_cache & base = *mem.base;
    const uint32_t n = vault.n_tokens();

    const auto old = base.snapkv.get(seq_id);
    if (!old || old->n_prompt != n) {
        throw std::invalid_argument(format("sequence %d does not hold the vault's %u tokens: prefill them again", seq_id, n));
    }
    const uint32_t window = old->window;
    auto record = std::make_shared<llama_snapkv_record>();
    record->n_prompt = n;
    record->window = window;
    const int32_t * from = ids;
    bool equal = true;
    for (const auto & layer : old->layers) {
        const uint32_t n_rows = ids ? n_kept[record->layers.size()] : n - window;
        const size_t size = (size_t) n_rows * layer.n_head_kv;
        record->layers.push_back({ layer.il, layer.n_head_kv, n_rows, {} });
        equal = equal && n_rows == record->layers[0].n_kept;
        auto & to = record->layers.back().ids;
        to.resize(size);
        if (ids) {
            const std::string error = llama_snapkv_check_ids(from, n_rows, layer.n_head_kv, n - window);
            if (!error.empty()) {
                throw std::invalid_argument(format("layer %d: the positions to keep %s", layer.il, error.c_str()));
            }
            std::copy_n(from, size, to.begin());
            from += size;
        } else {
            for (size_t i = 0; i < size; ++i) {
                to[i] = (int32_t) (i % n_rows);
            }
        }
    }

    if (!equal && ctx.n_seq_max() > 1) {
        throw std::invalid_argument("layers that keep different numbers of rows need a context of one sequence");
    }

    for (const auto & layer : record->layers) {
        const auto & cached = access::layer(base, layer.il);
        const uint32_t skip = record->max_kept() - layer.n_kept;
        if (skip % LLAMA_SNAPKV_N_KV_PAD != 0 && !ggml_backend_buffer_is_host(cached.k->buffer)) {
            throw std::invalid_argument(format("layer %d keeps %u rows fewer than another: on a GPU that has to be a multiple of %u, which attention kernels go on by",
                    layer.il, skip, LLAMA_SNAPKV_N_KV_PAD));
        }
    }

    // the cells: those of the sequence are free for its new rows
    const uint32_t n_rows = record->max_kept() + window;
    const auto & cells_before = base.get_cells(seq_id);
    uint32_t own = 0;
    for (uint32_t i = 0; i < cells_before.size(); ++i) {
        own += !cells_before.is_empty(i) && cells_before.seq_has(i, seq_id);
    }
    if (n_rows > cells_before.size() - cells_before.get_used() + own) {
        throw no_cells();
    }
    const auto state = vault.states.last((llama_pos) n);
    if (mem.recr && (!state || state->pos != (llama_pos) n)) {
        throw std::invalid_argument("the vault has no state of the recurrent layers behind the prompt: prefill it again");
    }
    if (mem.iswa && !mem.iswa->get_swa()->seq_rm(seq_id, (llama_pos) n, -1)) {
        throw std::invalid_argument("the cache of the sliding-window layers cannot go back to the prompt's end");
    }
    base.seq_rm(seq_id, -1, -1);
    if (mem.recr) {
        llama_snapkv_write_state(*mem.recr, seq_id, *state);
        base.snapkv.keep_state(seq_id, llama_snapkv_own_state(*mem.recr, state));
    }

    const auto target = llama_snapkv_free_cells(base, seq_id, n_rows);
    if (target.empty()) {
        throw std::runtime_error("the free cells do not lie side by side: remove other sequences, and prefill again");
    }

    GGML_ASSERT(equal || target.head() == 0);

    for (uint32_t ic = 0; ic < vault.layers.size(); ++ic) {
        const auto & kept = record->layers[ic];
        const auto tensors = access::tensors(access::layer(base, kept.il), target.strm[0]);
        for (size_t i = 0; i < tensors.size(); ++i) {
            const auto data = gather(vault, /*is_v =*/i == 1, ic, kept, window);
            ggml_tensor * t = tensors[i];
            ggml_backend_tensor_set(t, data.data(), (target.head() + record->max_kept() - kept.n_kept) * t->nb[1], data.size());
        }
    }
    llama_snapkv_place_cells(base, seq_id, target, record);
    for (auto & prev : access::gf_res_prev(ctx)) {
        if (prev) {
            prev->reset(); // a graph of other rows
        }
    }
}

} // namespace

int32_t llama_snapkv_select_rows(llama_context * ctx, llama_seq_id seq_id, const uint32_t * n_kept, const int32_t * ids) {
    const auto * vault = llama_snapkv_vault_of(ctx, seq_id);
    if (!vault || llama_snapkv_refuses(*ctx, -1)) {
        return -1;
    }
    ctx->synchronize();
    try {
        keep(*ctx, *vault, seq_id, n_kept, ids);
        llama_snapkv_of(ctx)->of_vault[seq_id] = llama_snapkv_memory_of(*ctx).base->snapkv.get(seq_id);
        return 0;
    } catch (const no_cells &) {
        llama_snapkv_set_error("the rows to keep and the window are more than the cells of the context: keep less, or make the budget larger");
        return 1;
    } catch (const std::invalid_argument & e) {
        llama_snapkv_set_error(e.what());
        return -1;
    } catch (const std::exception & e) {
        ctx->get_memory()->seq_rm(seq_id, -1, -1);
        llama_snapkv_set_error(e.what());
        return -2;
    }
}
