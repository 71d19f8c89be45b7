#include "recall/recall.h"

#include "evict/rank.h"
#include "graph/runner.h"
#include "recall/scan.h"
#include "state/cells.h"
#include "upstream/access.h"

#include "llama-impl.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <map>
#include <stdexcept>

using access = llama_snapkv_access;

static constexpr float FADE = 0.9f; // of what a row is worth, with each recall

namespace {

// a row of a KV head that takes the place of another
struct change {
    uint32_t head;
    uint32_t i;  // of the head's rows
    int32_t id;  // prompt position
    float worth;
};

class recaller {
public:
    recaller(llama_context & ctx, llama_snapkv & sk, llama_seq_id seq_id) :
        ctx(ctx), sk(sk), seq_id(seq_id), state(*sk.recalls.at(seq_id)), vault(sk.vaults.at(seq_id)), base(*llama_snapkv_memory_of(ctx).base), scan(ctx, vault, state.params) {
    }

    void run(llama_snapkv_record_ptr record);

private:
    void begin(const llama_snapkv_record_ptr & record);
    std::vector<float> votes_of_answer(uint32_t ic, uint32_t head);
    std::vector<change> choose(uint32_t ic, uint32_t head, const std::vector<float> & votes) const;
    size_t write(const llama_snapkv_record & record, uint32_t ic, const std::vector<change> & changes, std::vector<uint8_t> & rows) const;
    const uint8_t * row(bool is_v, uint32_t ic, uint32_t head, int32_t id) const;
    ggml_tensor * tensor(int32_t il, bool is_v) const { return access::tensors(access::layer(base, il), base.get_stream(seq_id))[is_v]; }
    uint32_t cell_of(const llama_snapkv_record & record, uint32_t ic) const { return cell0 + record.max_kept() - record.layers[ic].n_kept; }

    llama_context & ctx;
    llama_snapkv & sk;
    const llama_seq_id seq_id;
    llama_snapkv_recall & state;
    const llama_snapkv_vault & vault;
    llama_kv_cache & base;
    llama_snapkv_scan scan;
    uint32_t cell0 = 0; // the first of the kept rows
};

} // namespace

const uint8_t * recaller::row(bool is_v, uint32_t ic, uint32_t head, int32_t id) const {
    const auto & layer = vault.layers[ic];
    return vault.row(is_v, ic, id) + head * ((is_v ? layer.row_v : layer.row_k) / layer.n_head_kv);
}

// the kept rows are worth what the prompt's last tokens gave them
void recaller::begin(const llama_snapkv_record_ptr & record) {
    std::vector<std::vector<float>> worth;
    const uint32_t n_saved = vault.n_queries();
    const uint32_t n_queries = std::min({ n_saved, record->window, (uint32_t) 16 });
    for (uint32_t ic = 0; ic < record->layers.size(); ++ic) {
        const auto & kept = record->layers[ic];
        const auto & layer = vault.layers[ic];
        const auto & watched = state.queries.layers.at(kept.il);
        worth.emplace_back(kept.ids.size());
        if (n_queries == 0) {
            continue;
        }
        std::vector<float> saved((size_t) layer.head_dim_k * n_saved * layer.n_head);
        vault.read_queries(ic, saved.data());
        const int64_t n_head = layer.n_head / layer.n_head_kv;
        std::vector<float> q((size_t) layer.head_dim_k * n_queries * n_head);
        for (uint32_t h = 0; h < kept.n_head_kv; ++h) {
            for (int64_t i = 0; i < n_head; ++i) {
                const float * last = saved.data() + ((h * n_head + i + 1) * n_saved - n_queries) * layer.head_dim_k;
                std::copy_n(last, n_queries * layer.head_dim_k, q.data() + i * n_queries * layer.head_dim_k);
            }
            const auto votes = scan.votes(ic, h, q.data(), n_queries, n_head, watched.scale, watched.softcap);
            for (uint32_t i = 0; i < kept.n_kept; ++i) {
                worth.back()[h * kept.n_kept + i] = votes[kept.ids[h * kept.n_kept + i]];
            }
        }
    }
    state.worth = std::move(worth);
    state.record = record;
}

// all layers that read the cached one's KV vote as one
std::vector<float> recaller::votes_of_answer(uint32_t ic, uint32_t head) {
    const uint32_t n_head_kv = (uint32_t) vault.layers[ic].n_head_kv;
    const auto readers = llama_snapkv_readers(base, state.record->layers[ic].il);
    const auto & first = state.queries.layers.at(readers[0]);
    const int64_t n_queries = (int64_t) first.tokens.size();
    std::vector<float> q;
    int64_t n_head = 0;
    for (const int32_t il : readers) {
        const auto & layer = state.queries.layers.at(il);
        const uint32_t g = layer.n_head / n_head_kv;
        for (uint32_t i = head * g; i < (head + 1) * g; ++i, ++n_head) {
            for (const auto & token : layer.tokens) {
                q.insert(q.end(), token.begin() + i * layer.head_dim, token.begin() + (i + 1) * layer.head_dim);
            }
        }
    }
    return scan.votes(ic, head, q.data(), n_queries, n_head, first.scale, first.softcap);
}

std::vector<change> recaller::choose(uint32_t ic, uint32_t head, const std::vector<float> & votes) const {
    const auto & kept = state.record->layers[ic];
    const uint32_t n_prefix = state.record->n_prompt - state.record->window;
    const int32_t * ids = kept.ids.data() + head * kept.n_kept;
    const float * worth = state.worth[ic].data() + head * kept.n_kept;

    std::vector<float> scores(votes.begin(), votes.begin() + n_prefix);
    std::vector<uint8_t> is_kept(n_prefix);
    for (uint32_t i = 0; i < kept.n_kept; ++i) {
        scores[ids[i]] = std::max(scores[ids[i]], FADE * worth[i]);
        is_kept[ids[i]] = true;
        if ((uint32_t) ids[i] < state.params.n_sink) {
            scores[ids[i]] = INFINITY;
        }
    }
    for (const auto & span : state.protected_spans) {
        for (llama_pos pos = span.begin; pos < std::min<llama_pos>(span.end, n_prefix); ++pos) {
            if (is_kept[pos]) {
                scores[pos] = INFINITY;
            }
        }
    }
    std::vector<int32_t> added;
    for (const int32_t id : llama_snapkv_select(scores, kept.n_kept, /*n_sink =*/0)) {
        if (is_kept[id]) {
            is_kept[id] = false; // what is left goes
        } else {
            added.push_back(id);
        }
    }
    std::vector<change> res;
    for (uint32_t i = 0, next = 0; i < kept.n_kept && next < added.size(); ++i) {
        if (is_kept[ids[i]]) {
            const int32_t id = added[next++];
            res.push_back({ head, i, id, votes[id] });
        }
    }
    return res;
}

// one row after the other where the cache is in host memory; on a device, all cells between the first and the last that change, at once,
// put together in rows. bytes
size_t recaller::write(const llama_snapkv_record & record, uint32_t ic, const std::vector<change> & changes, std::vector<uint8_t> & rows) const {
    size_t n_bytes = 0;
    if (changes.empty()) {
        return n_bytes;
    }
    const auto & kept = record.layers[ic];
    uint32_t begin = kept.n_kept;
    uint32_t end = 0;
    for (const auto & c : changes) {
        begin = std::min(begin, c.i);
        end = std::max(end, c.i + 1);
    }
    for (const bool is_v : { false, true }) {
        if (is_v && vault.layers[ic].row_v == 0) {
            continue;
        }
        ggml_tensor * t = tensor(kept.il, is_v);
        const size_t head = t->nb[1] / kept.n_head_kv;
        const uint32_t cell = cell_of(record, ic);
        if (ggml_backend_buffer_is_host(t->buffer)) {
            for (const auto & c : changes) {
                ggml_backend_tensor_set(t, row(is_v, ic, c.head, c.id), (cell + c.i) * t->nb[1] + c.head * head, head);
            }
            n_bytes += changes.size() * head;
            continue;
        }
        const size_t size = (end - begin) * t->nb[1];
        for (uint32_t h = 0; h < kept.n_head_kv; ++h) {
            for (uint32_t i = begin; i < end; ++i) {
                memcpy(&rows[(i - begin) * t->nb[1] + h * head], row(is_v, ic, h, kept.ids[h * kept.n_kept + i]), head);
            }
        }
        ggml_backend_tensor_set(t, rows.data(), (cell + begin) * t->nb[1], size);
        n_bytes += size;
    }
    return n_bytes;
}

void recaller::run(llama_snapkv_record_ptr before) {
    const int64_t t0 = ggml_time_us();
    ctx.synchronize();
    const auto cells = llama_snapkv_cells_before(base, seq_id, before->pos_exact());
    if (cells.second != before->max_kept()) {
        throw std::runtime_error("the kept rows do not lie side by side: prefill the prompt again, or decode without recall");
    }
    cell0 = cells.first;
    if (before != state.record) {
        begin(before);
    }
    auto record = std::make_shared<llama_snapkv_record>(*before);
    auto worth = state.worth;
    std::vector<std::vector<change>> changes(record->layers.size());
    llama_snapkv_recall_event event = {};
    for (uint32_t ic = 0; ic < record->layers.size(); ++ic) {
        auto & kept = record->layers[ic];
        for (uint32_t h = 0; h < kept.n_head_kv; ++h) {
            const auto votes = votes_of_answer(ic, h);
            for (uint32_t i = h * kept.n_kept; i < (h + 1) * kept.n_kept; ++i) {
                worth[ic][i] = std::max(FADE * worth[ic][i], votes[kept.ids[i]]);
            }
            for (const auto & c : choose(ic, h, votes)) {
                kept.ids[h * kept.n_kept + c.i] = c.id;
                worth[ic][h * kept.n_kept + c.i] = c.worth;
                changes[ic].push_back(c);
            }
        }
    }
    size_t max_size = 0;
    for (const auto & kept : record->layers) {
        for (const ggml_tensor * t : access::tensors(access::layer(base, kept.il), base.get_stream(seq_id))) {
            max_size = std::max(max_size, ggml_backend_buffer_is_host(t->buffer) ? 0 : kept.n_kept * t->nb[1]);
        }
    }
    std::vector<uint8_t> rows(max_size);
    state.events.reserve(state.events.size() + 1);
    const int64_t t1 = ggml_time_us();

    // from here on nothing fails
    for (uint32_t ic = 0; ic < record->layers.size(); ++ic) {
        event.n_bytes += write(*record, ic, changes[ic], rows);
        event.n_rows += changes[ic].size();
    }
    state.worth = std::move(worth);
    state.record = record;
    sk.of_vault[seq_id] = record;
    base.snapkv.set(seq_id, record);
    event.pos = base.seq_pos_max(seq_id);
    event.seconds_rank = (t1 - t0) * 1e-6;
    event.seconds_copy = (ggml_time_us() - t1) * 1e-6;
    event.bytes_votes = state.bytes_votes = std::max(state.bytes_votes, scan.bytes());
    state.events.push_back(event);
}

void llama_snapkv_recall_begin(llama_snapkv & sk, const llama_snapkv_prompt & prompt) {
    sk.recalls.erase(prompt.seq_id);
    if (sk.params.recall_every > 0) {
        auto recall = std::make_shared<llama_snapkv_recall>();
        recall->params = sk.params;
        recall->protected_spans.assign(prompt.protected_spans, prompt.protected_spans + prompt.n_protected);
        sk.recalls[prompt.seq_id] = std::move(recall);
    }
}

// rows of the vault, of which some are not in the cache; null if there are none
static llama_snapkv_record_ptr incomplete(llama_context & ctx, const llama_snapkv & sk, llama_seq_id seq_id) {
    const auto record = llama_snapkv_memory_of(ctx).base->snapkv.get(seq_id);
    const auto vault = sk.vaults.find(seq_id);
    const bool is_vaults = record && sk.of_vault.count(seq_id) && sk.of_vault.at(seq_id) == record;
    const bool has_more = is_vaults && vault != sk.vaults.end() && vault->second.n_tokens() == record->n_prompt && record->max_kept() + record->window < record->n_prompt;
    return has_more ? record : nullptr;
}

llama_snapkv_recall_step::llama_snapkv_recall_step(llama_context & ctx, const llama_batch & batch) :
    ctx(ctx) {
    if (!llama_snapkv_enabled(&ctx) || access::snapkv(ctx)->recalls.empty()) {
        return;
    }
    sk = access::snapkv(ctx).get();
    std::map<llama_seq_id, uint32_t> n_tokens;
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        n_tokens[batch.seq_id ? batch.seq_id[i][0] : 0]++;
    }
    const auto & base = *llama_snapkv_memory_of(ctx).base;
    std::map<uint32_t, llama_snapkv_watch::sequence> watched;
    for (const auto & [seq_id, n] : n_tokens) {
        const auto found = sk->recalls.find(seq_id);
        if (found == sk->recalls.end() || !incomplete(ctx, *sk, seq_id)) {
            continue;
        }
        auto & recall = *found->second;
        answers.push_back({ seq_id, &recall, n });
        if (recall.n_since + n + recall.params.recall_queries > recall.params.recall_every) {
            watched[base.get_stream(seq_id)] = { recall.params.recall_queries, &recall.queries };
        }
    }
    if (!watched.empty()) {
        watch = std::make_unique<llama_snapkv_watch>(ctx, base, std::move(watched));
    }
}

llama_snapkv_recall_step::~llama_snapkv_recall_step() {
    if (watch && !has_ended) {
        for (const auto & answer : answers) {
            answer.recall->queries.layers.clear(); // some layers may have been computed
        }
    }
}

void llama_snapkv_recall_step::end() {
    has_ended = true;
    const bool is_complete = !watch || watch->is_complete();
    watch.reset();
    std::exception_ptr failed;
    for (const auto & answer : answers) {
        auto & recall = *answer.recall;
        recall.n_since += answer.n_tokens;
        if (recall.n_since < recall.params.recall_every || recall.queries.layers.empty()) {
            continue;
        }
        recall.n_since = 0;
        try {
            recaller(ctx, *sk, answer.seq_id).run(incomplete(ctx, *sk, answer.seq_id));
        } catch (const llama_snapkv_compute_error & e) {
            failed = e.status == GGML_STATUS_ABORTED ? failed : std::current_exception();
        } catch (...) {
            failed = std::current_exception();
        }
        recall.queries.layers.clear();
    }
    if (!is_complete) {
        throw std::runtime_error("a layer's attention does not read the cache itself, so that whose its queries are is not to be told: decode without recall");
    }
    if (failed) {
        std::rethrow_exception(failed);
    }
}
