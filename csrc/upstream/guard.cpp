#include "upstream/snapkv-guard.h"

#include "upstream/devices.h"

#include "llama-impl.h"
#include "llama-io.h"
#include "llama-kv-cache.h"

#include <algorithm>
#include <stdexcept>

// set in the number of streams (at most LLAMA_MAX_SEQ) when records follow
static constexpr uint32_t STATE_FLAG = 1u << 31;
static constexpr uint32_t STATE_VERSION = 1;

// upper bounds that a truncated or foreign state cannot talk us out of
static constexpr uint32_t STATE_MAX_LAYERS = 4096;
static constexpr uint32_t STATE_MAX_IDS = 1u << 28;

static bool covers(const llama_kv_cache & kv, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    return p0 <= 0 && (p1 < 0 || p1 > kv.seq_pos_max(seq_id));
}

bool llama_snapkv_guard::allows_rm(const llama_kv_cache & kv, llama_seq_id seq_id, llama_pos p0, llama_pos p1) const {
    for (const auto & [id, record] : records) {
        if (seq_id >= 0 && seq_id != id) {
            continue;
        }
        if (!covers(kv, id, p0, p1) && p0 < record->pos_exact()) {
            return false;
        }
    }
    return true;
}

bool llama_snapkv_guard::rm(const llama_kv_cache & kv, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    if (!allows_rm(kv, seq_id, p0, p1)) {
        return false;
    }
    for (auto it = records.begin(); it != records.end();) {
        const bool gone = (seq_id < 0 || seq_id == it->first) && covers(kv, it->first, p0, p1);
        it = gone ? records.erase(it) : std::next(it);
    }
    for (auto & [id, kept] : states) {
        if (seq_id < 0 || seq_id == id) {
            kept.truncate(std::max(p0, 0));
        }
    }
    for (auto it = looks.begin(); it != looks.end();) {
        const bool is_other = (seq_id < 0 || seq_id == it->first) && p0 < it->second;
        it = is_other ? looks.erase(it) : std::next(it);
    }
    return true;
}

bool llama_snapkv_guard::allows_cp(const llama_kv_cache & kv, llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1) const {
    const auto record = get(src);
    if (!record || src == dst || covers(kv, src, p0, p1) || p0 >= record->pos_exact()) {
        return true;
    }
    LLAMA_LOG_ERROR("%s: sequence %d is compacted: copy all of it, or from position %d on\n", __func__, src, record->pos_exact());
    return false;
}

bool llama_snapkv_guard::cp(const llama_kv_cache & kv, llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1) {
    if (!allows_cp(kv, src, dst, p0, p1)) {
        return false;
    }
    if (src != dst) {
        looks.erase(dst);
    }
    if (src != dst && covers(kv, src, p0, p1)) {
        set(dst, get(src));
        states[dst] = states_of(src);
    } else if (src != dst) {
        states.erase(dst);
    }
    return true;
}

bool llama_snapkv_guard::allows_shift(llama_seq_id seq_id) {
    if (!get(seq_id)) {
        states.erase(seq_id);
        looks.erase(seq_id);
        return true;
    }
    LLAMA_LOG_ERROR("%s: sequence %d is compacted: its positions cannot be shifted or divided; evaluate it anew\n", __func__, seq_id);
    return false;
}

void llama_snapkv_guard::keep(llama_seq_id seq_id) {
    const auto record = get(seq_id);
    const auto kept = states_of(seq_id);
    const llama_pos look = look_of(seq_id);
    clear();
    set(seq_id, record);
    states[seq_id] = kept;
    set_look(seq_id, look);
}

void llama_snapkv_guard::clear() {
    records.clear();
    states.clear();
    looks.clear();
}

const llama_snapkv_states & llama_snapkv_guard::states_of(llama_seq_id seq_id) const {
    static const llama_snapkv_states none;
    const auto it = states.find(seq_id);
    return it == states.end() ? none : it->second;
}

void llama_snapkv_guard::keep_state(llama_seq_id seq_id, llama_snapkv_kept_state_ptr state) {
    states[seq_id].add(std::move(state));
}

llama_pos llama_snapkv_guard::look_of(llama_seq_id seq_id) const {
    const auto it = looks.find(seq_id);
    return it == looks.end() ? -1 : it->second;
}

void llama_snapkv_guard::set_look(llama_seq_id seq_id, llama_pos pos) {
    looks[seq_id] = pos;
}

uint32_t llama_snapkv_record::max_kept() const {
    uint32_t res = 0;
    for (const auto & layer : layers) {
        res = std::max(res, layer.n_kept);
    }
    return res;
}

uint32_t llama_snapkv_guard::skip(int32_t il) const {
    for (const auto & [_, record] : records) {
        const uint32_t max_kept = record->max_kept();
        for (const auto & layer : record->layers) {
            if (layer.il == il) {
                return max_kept - layer.n_kept;
            }
        }
    }
    return 0;
}

ggml_tensor * llama_snapkv_rows(ggml_context * ctx, ggml_tensor * cached, int64_t head_dim, int64_t n_head_kv, uint32_t skip, uint32_t n_kv) {
    return ggml_view_3d(ctx, cached, head_dim, n_head_kv, n_kv - skip, ggml_row_size(cached->type, head_dim), cached->nb[1], skip * cached->nb[1]);
}

void llama_snapkv_fit_mask(ggml_context * ctx, ggml_tensor * attn) {
    ggml_tensor * mask = attn->src[3];
    const int64_t n_kv = attn->src[1]->ne[1];
    if (mask && mask->ne[0] > n_kv) {
        // the constructor of the node asks for a contiguous mask, not all backends do
        ggml_tensor * view = ggml_view_4d(ctx, mask, n_kv, mask->ne[1], mask->ne[2], mask->ne[3], mask->nb[1], mask->nb[2], mask->nb[3], (mask->ne[0] - n_kv) * mask->nb[0]);
        attn->src[3] = llama_snapkv_reads_mask_stride() ? view : ggml_cont(ctx, view);
    }
}

llama_snapkv_record_ptr llama_snapkv_guard::get(llama_seq_id seq_id) const {
    const auto it = records.find(seq_id);
    return it == records.end() ? nullptr : it->second;
}

void llama_snapkv_guard::set(llama_seq_id seq_id, llama_snapkv_record_ptr record) {
    looks.erase(seq_id); // rows were evicted, or are a file's
    if (record) {
        records[seq_id] = std::move(record);
    } else {
        records.erase(seq_id);
    }
}

//
// state
//

template <typename T>
static void put(llama_io_write_i & io, const T & v) {
    io.write(&v, sizeof(v));
}

template <typename T>
static T take(llama_io_read_i & io) {
    T v;
    io.read(&v, sizeof(v));
    return v;
}

void llama_snapkv_guard::state_write(llama_io_write_i & io, uint32_t n_stream, llama_seq_id seq_id) const {
    llama_snapkv_records out;
    for (const auto & [id, record] : records) {
        if (seq_id < 0 || seq_id == id) {
            out[id] = record;
        }
    }
    if (out.empty()) {
        put(io, n_stream);
        return;
    }

    put(io, n_stream | STATE_FLAG);
    put(io, STATE_VERSION);
    put(io, (uint32_t) out.size());
    for (const auto & [id, record] : out) {
        put(io, id);
        put(io, record->n_prompt);
        put(io, record->window);
        put(io, (uint32_t) record->layers.size());
        for (const auto & layer : record->layers) {
            put(io, layer.il);
            put(io, layer.n_head_kv);
            put(io, layer.n_kept);
            io.write(layer.ids.data(), layer.ids.size() * sizeof(int32_t));
        }
    }
}

llama_snapkv_records llama_snapkv_guard::state_read(llama_io_read_i & io, uint32_t & n_stream) {
    llama_snapkv_records res;
    if (!(n_stream & STATE_FLAG)) {
        return res;
    }
    n_stream &= ~STATE_FLAG;

    if (take<uint32_t>(io) != STATE_VERSION) {
        throw std::runtime_error("the state was saved by another version of snapkv-local");
    }
    const uint32_t n_records = take<uint32_t>(io);
    if (n_records > LLAMA_MAX_SEQ) {
        throw std::runtime_error("corrupt state: too many compacted sequences");
    }
    for (uint32_t i = 0; i < n_records; ++i) {
        auto record = std::make_shared<llama_snapkv_record>();
        const llama_seq_id id = take<llama_seq_id>(io);
        record->n_prompt = take<uint32_t>(io);
        record->window = take<uint32_t>(io);
        const uint32_t n_layers = take<uint32_t>(io);
        if (id < 0 || id >= LLAMA_MAX_SEQ || record->window > record->n_prompt || n_layers > STATE_MAX_LAYERS) {
            throw std::runtime_error("corrupt state: bad record of a compacted sequence");
        }
        for (uint32_t l = 0; l < n_layers; ++l) {
            llama_snapkv_record::layer layer;
            layer.il = take<int32_t>(io);
            layer.n_head_kv = take<uint32_t>(io);
            layer.n_kept = take<uint32_t>(io);
            if ((uint64_t) layer.n_head_kv * layer.n_kept > STATE_MAX_IDS) {
                throw std::runtime_error("corrupt state: too many kept positions");
            }
            layer.ids.resize((size_t) layer.n_head_kv * layer.n_kept);
            io.read(layer.ids.data(), layer.ids.size() * sizeof(int32_t));
            record->layers.push_back(std::move(layer));
        }
        res[id] = std::move(record);
    }
    return res;
}

void llama_snapkv_guard::state_restore(llama_seq_id seq_id, const llama_snapkv_records & read) {
    if (seq_id < 0) {
        states.clear();
        looks.clear();
        records = read;
    } else {
        states.erase(seq_id);
        // a single sequence may be loaded under another id
        set(seq_id, read.empty() ? nullptr : read.begin()->second);
    }
}
