// A selective prefill between two layer groups: rows that go on are brought together, and chunks made of them.
#include "prefill/run.h"

#include "prefill/tail.h"
#include "upstream/access.h"

#include <algorithm>
#include <map>

using access = llama_snapkv_access;

// chunks of which only K and V are computed, in chunks that go through whole layers
static constexpr uint32_t AHEAD = 4;

// what later layers need whatever the votes say: queries that vote, and in sliding-window layers all rows that the last tokens
// and those to come can see, for whichever of the last ones is computed again
uint32_t llama_snapkv_prefill_run::n_tail() const {
    const uint32_t n_swa = mem.iswa ? ctx.get_model().hparams.n_swa : 0;
    return std::max(task.n_queries(), n_swa + task.window);
}

void llama_snapkv_prefill_run::select(uint32_t ig) {
    if (is_last_group(ig) || !selection.wants_look(groups.il1(ig), groups.il1(ig + 1))) {
        return;
    }
    auto & stats = sk.stats;
    const int64_t t0 = ggml_time_us();
    const uint32_t n_all = task.n_rows();
    if (mem.iswa) {
        llama_kv_cache & swa = *mem.iswa->get_swa();
        cells_before = std::make_unique<llama_kv_cells>(swa.get_cells(seq_id));
        head_before = access::v_heads(swa)[swa.get_stream(seq_id)];
    }
    look_ahead(ig);
    const bool chosen = selection.choose(groups.il1(ig));
    stats.settled = selection.get_settled();
    if (chosen) {
        stats.n_layer_all = groups.il1(ig);
        stats.n_selected = (uint32_t) selection.rows().size();
        const double all = (double) groups.il1(ig) / groups.n_layer;
        stats.layer_work = all + (1.0 - all) * stats.n_selected / n_all;

        staging.hidden.gather(runner, selection.rows(), plan.chunk);
        sk.selected = selection.rows();
        task.selected = &selection.rows();
        positions.selected = task.selected;
        positions.ic_selected = groups.ic1(ig);
        progress.expect(progress.get_done() + (uint64_t) task.n_rows() * (groups.count() - ig - 1));
    }
    begin_chunks(ig, plan.chunk, {});
    stats.seconds_select += (ggml_time_us() - t0) * 1e-6;
}

// chunks of the layers after a group, of the rows that these have
void llama_snapkv_prefill_run::begin_chunks(uint32_t ig, uint32_t n_chunk, const std::vector<uint32_t> & stops) {
    known->load_swa();
    batches.split(known->n(), n_chunk, stops);
    inputs = {};
    inputs.begin(place.streams(), max_input_bytes(batches.count() - 1));
    ig_inputs = ig + 1;
}

// What would the question look at in the layers to come? Hidden states change little from layer to layer, so the rows that it asks
// are those of now: of most, K and V of each layer to come are computed of the hidden state that they have, which costs a small part of the
// layer. Only the last rows, whose queries vote, go through all of it. Then they have their hidden state back.
void llama_snapkv_prefill_run::look_ahead(uint32_t ig) {
    const uint32_t tail0 = (task.n_rows() - task.n_queries()) / llama_snapkv_staging::MASK_ALIGNMENT * llama_snapkv_staging::MASK_ALIGNMENT;
    const auto tail = staging.hidden.read_tail(task.n_rows() - tail0);
    // larger ones, as K and V alone take less compute buffers; not where buffers or cells are of a chunk's size
    const bool larger = !plan.hidden_host && !mem.iswa && task.n_rows() - tail0 <= plan.chunk;
    begin_chunks(ig, larger ? AHEAD * plan.chunk : plan.chunk, { tail0 });
    ahead = true;
    for (uint32_t next = ig + 1; next < groups.count(); ++next) {
        begin_group(next);
        for (uint32_t i = 0; i < batches.count(); ++i) {
            begin_chunk(i);
            compute_chunk(next, i);
        }
        flights.land_all();
        compressor->look(layers);
    }
    ahead = false;
    staging.hidden.write_tail(tail);
}

// all sliding-window layers share their cells: those before the selection have other rows in them than those after it. the last
// rows, which all have, go to where the layers before have them; others go
void llama_snapkv_prefill_run::join_tails() {
    if (!task.selected || !mem.iswa) {
        return;
    }
    llama_kv_cache & swa = *mem.iswa->get_swa();
    const uint32_t stream = swa.get_stream(seq_id);
    const auto end = (uint32_t) task.end();
    llama_snapkv_vault::segment late;
    llama_snapkv_save_tail(swa, seq_id, end, end, late); // as far back as none is missing

    access::v_cells(swa)[stream] = *cells_before;
    access::v_heads(swa)[stream] = head_before;
    std::map<llama_pos, uint32_t> cell_of;
    for (uint32_t i = 0; i < cells_before->size(); ++i) {
        if (!cells_before->is_empty(i) && cells_before->seq_has(i, seq_id)) {
            cell_of[cells_before->pos_get(i)] = i;
        }
    }
    llama_pos pos0 = (llama_pos) end;
    while (pos0 > (llama_pos) late.swa.pos0 && cell_of.count(pos0 - 1)) {
        pos0--;
    }
    swa.seq_rm(seq_id, -1, pos0);

    struct side_by_side {
        uint32_t first; // of the rows that are moved
        uint32_t cell;
        uint32_t n;
    };
    std::vector<side_by_side> places;
    for (llama_pos pos = pos0; pos < (llama_pos) end; ++pos) {
        const uint32_t cell = cell_of.at(pos);
        if (!places.empty() && places.back().cell + places.back().n == cell) {
            places.back().n++;
        } else {
            places.push_back({ (uint32_t) pos - late.swa.pos0, cell, 1 });
        }
    }

    const uint8_t * from = late.swa.data;
    const int32_t il_selected = groups.il1(positions.ic_selected / groups.size - 1);
    for (const auto & layer : access::layers(swa)) {
        for (ggml_tensor * t : access::tensors(layer, stream)) {
            for (const auto & rows : places) {
                if ((int32_t) layer.il >= il_selected) {
                    ggml_backend_tensor_set(t, from + rows.first * t->nb[1], rows.cell * t->nb[1], rows.n * t->nb[1]);
                }
            }
            from += late.swa.n_rows * t->nb[1];
        }
    }
}
