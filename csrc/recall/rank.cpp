#include "recall/rank.h"

#include "evict/rank.h"
#include "recall/threads.h"

#include <algorithm>
#include <cmath>
#include <cstring>

static constexpr float FADE = 0.9f;             // of what a row is worth, with each recall
static constexpr uint32_t N_FIRST = 16;         // of the prompt's last queries, which say what the kept rows are worth at first
static constexpr uint32_t N_TIMES_KEPT = 4;     // rows that are asked, at least, for one that is kept
static constexpr uint32_t N_STRETCHES = 256;    // of the index that one task makes

llama_snapkv_ranker::llama_snapkv_ranker(llama_snapkv_vault & vault, const llama_snapkv_params & params, std::vector<llama_snapkv_span> protected_spans,
        std::vector<std::vector<int32_t>> readers, uint32_t n_threads) :
    vault(vault), params(params), protected_spans(std::move(protected_spans)), readers(std::move(readers)), n_threads(std::max(1u, n_threads)) {
}

uint32_t llama_snapkv_ranker::n_asked(const llama_snapkv_params & params, uint32_t n_kept) {
    return params.recall_rows == 0 ? UINT32_MAX : std::max(params.recall_rows, N_TIMES_KEPT * n_kept);
}

bool llama_snapkv_ranker::each_head(const llama_snapkv_record & record, const std::function<void(uint32_t ic, uint32_t head, llama_snapkv_votes_of_head & votes)> & fn,
        const std::function<bool()> & stops) {
    std::vector<std::pair<uint32_t, uint32_t>> heads;
    for (uint32_t ic = 0; ic < record.layers.size(); ++ic) {
        for (uint32_t h = 0; h < record.layers[ic].n_head_kv; ++h) {
            heads.push_back({ ic, h });
        }
    }
    std::vector<llama_snapkv_votes_of_head> votes(n_threads); // of each thread, so that memory is asked for once
    const bool ok = llama_snapkv_each(n_threads, heads.size(), [&](size_t i, uint32_t thread) { fn(heads[i].first, heads[i].second, votes[thread]); }, stops);
    uint64_t bytes = 0;
    for (const auto & v : votes) {
        bytes += v.bytes();
    }
    bytes_votes = std::max(bytes_votes, bytes);
    return ok;
}

// from what is there of it on
bool llama_snapkv_ranker::make_index(uint32_t n_asked, const std::function<bool()> & stops) {
    const uint32_t n = vault.n_tokens();
    auto & index = vault.index;
    if (n_asked >= n || index.size() == n) {
        return true;
    }
    const auto shapes = vault.key_shapes();
    const uint32_t first = index.first();
    const uint32_t n_stretches = llama_snapkv_index::n_stretches(n);
    index.reserve(n, shapes);
    const uint32_t n_parts = (n_stretches - first + N_STRETCHES - 1) / N_STRETCHES;
    const auto part = [&](size_t i, uint32_t) {
        const uint32_t ic = (uint32_t) (i / n_parts);
        const auto & layer = vault.layers[ic];
        llama_snapkv_stretch stretch(shapes[ic].head_dim * shapes[ic].n_head_kv);
        const uint32_t s0 = first + (uint32_t) (i % n_parts) * N_STRETCHES;
        for (uint32_t s = s0; s < std::min(n_stretches, s0 + N_STRETCHES); ++s) {
            stretch.begin();
            vault.each(/*is_v =*/false, ic, s * llama_snapkv_index::STRETCH, std::min(n, (s + 1) * llama_snapkv_index::STRETCH), [&](const uint8_t * data, uint32_t, uint32_t n_rows) {
                stretch.add(layer.type_k, data, layer.row_k, n_rows);
            });
            for (uint32_t h = 0; h < shapes[ic].n_head_kv; ++h) {
                stretch.write(h * shapes[ic].head_dim, shapes[ic].head_dim, index.mean(ic, h, s));
            }
        }
    };
    if (!llama_snapkv_each(n_threads, n_parts * shapes.size(), part, stops)) {
        return false;
    }
    index.filled(n);
    return true;
}

llama_snapkv_lanes llama_snapkv_ranker::lanes_of_prompt(uint32_t ic, uint32_t head, const std::vector<float> & saved) const {
    const auto & layer = vault.layers[ic];
    const int64_t n_saved = vault.n_queries();
    const int64_t n_queries = std::min<int64_t>({ n_saved, params.window_size, N_FIRST });
    const int64_t n_head = layer.n_head / layer.n_head_kv;
    std::vector<float> q((size_t) layer.head_dim_k * n_queries * n_head);
    for (int64_t i = 0; i < n_head; ++i) {
        const float * last = saved.data() + ((head * n_head + i + 1) * n_saved - n_queries) * layer.head_dim_k;
        std::copy_n(last, n_queries * layer.head_dim_k, q.data() + i * n_queries * layer.head_dim_k);
    }
    return { q.data(), layer.head_dim_k, n_queries, n_head, layer.scale, layer.softcap };
}

// all layers that read the cached one's KV vote as one
llama_snapkv_lanes llama_snapkv_ranker::lanes_of_answer(uint32_t ic, uint32_t head, const llama_snapkv_queries & queries) const {
    const uint32_t n_head_kv = (uint32_t) vault.layers[ic].n_head_kv;
    const auto & first = queries.layers.at(readers[ic][0]);
    std::vector<float> q;
    int64_t n_head = 0;
    for (const int32_t il : readers[ic]) {
        const auto & layer = queries.layers.at(il);
        const uint32_t g = layer.n_head / n_head_kv;
        for (uint32_t i = head * g; i < (head + 1) * g; ++i, ++n_head) {
            for (const auto & token : layer.tokens) {
                q.insert(q.end(), token.begin() + i * layer.head_dim, token.begin() + (i + 1) * layer.head_dim);
            }
        }
    }
    return { q.data(), first.head_dim, (int64_t) first.tokens.size(), n_head, first.scale, first.softcap };
}

bool llama_snapkv_ranker::prepare(llama_snapkv_ranked & known, const std::function<bool()> & stops) {
    const auto & record = *known.record;
    const uint32_t n_rows = n_asked(params, record.max_kept());
    if (!make_index(n_rows, stops)) {
        return false;
    }
    if (!known.worth.empty()) {
        return true;
    }
    llama_snapkv_worth worth;
    std::vector<std::vector<float>> saved;
    for (uint32_t ic = 0; ic < record.layers.size(); ++ic) {
        const auto & layer = vault.layers[ic];
        worth.emplace_back(record.layers[ic].ids.size());
        saved.emplace_back((size_t) layer.head_dim_k * vault.n_queries() * layer.n_head);
        vault.read_queries(ic, saved.back().data());
    }
    if (vault.n_queries() > 0) {
        const auto ask = [&](uint32_t ic, uint32_t head, llama_snapkv_votes_of_head & votes) {
            const auto & kept = record.layers[ic];
            votes.count(vault, ic, head, lanes_of_prompt(ic, head, saved[ic]), n_rows, params);
            for (uint32_t i = head * kept.n_kept; i < (head + 1) * kept.n_kept; ++i) {
                worth[ic][i] = votes.of_any(kept.ids[i]);
            }
        };
        if (!each_head(record, ask, stops)) {
            return false;
        }
    }
    known.worth = std::move(worth);
    known.bytes_votes = bytes_votes;
    return true;
}

// worth: of all of the layer's rows
std::vector<llama_snapkv_change> llama_snapkv_ranker::choose(const llama_snapkv_record::layer & kept, uint32_t head, const std::vector<float> & worth, uint32_t n_prefix,
        const llama_snapkv_votes_of_head & votes) const {
    const int32_t * ids = kept.ids.data() + head * kept.n_kept;
    const auto stays = [&](int32_t id) {
        return (uint32_t) id < params.n_sink || std::any_of(protected_spans.begin(), protected_spans.end(), [id](const auto & span) { return id >= span.begin && id < span.end; });
    };
    // rows in the order of their positions, as equal ones are chosen: those that were asked, and the kept ones
    std::vector<std::pair<int32_t, uint32_t>> in_order(kept.n_kept); // of the kept ones, with where they are
    for (uint32_t i = 0; i < kept.n_kept; ++i) {
        in_order[i] = { ids[i], i };
    }
    std::sort(in_order.begin(), in_order.end());
    std::vector<int32_t> rows;
    std::vector<float> scores;
    std::vector<uint8_t> is_kept;
    auto next = in_order.begin();
    const auto add_kept = [&](float vote) {
        rows.push_back(next->first);
        scores.push_back(stays(next->first) ? INFINITY : params.recall_margin * std::max(vote, worth[head * kept.n_kept + next->second]));
        is_kept.push_back(1);
        ++next;
    };
    const auto add_kept_before = [&](uint32_t pos) {
        while (next != in_order.end() && (uint32_t) next->first < pos) {
            add_kept(votes.of_any(next->first));
        }
    };
    for (const auto & [begin, end] : votes.get_runs()) {
        add_kept_before(begin);
        for (uint32_t pos = begin; pos < std::min(end, n_prefix); ++pos) {
            if (next != in_order.end() && (uint32_t) next->first == pos) {
                add_kept(votes.of_asked(pos));
            } else {
                rows.push_back((int32_t) pos);
                scores.push_back(votes.of_asked(pos));
                is_kept.push_back(0);
            }
        }
    }
    add_kept_before(n_prefix);

    std::vector<int32_t> added;
    for (const int32_t j : llama_snapkv_select(scores, kept.n_kept, /*n_sink =*/0)) {
        if (is_kept[j]) {
            is_kept[j] = 2;
        } else {
            added.push_back(rows[j]);
        }
    }
    std::vector<uint8_t> goes(kept.n_kept);
    for (size_t j = 0, i = 0; j < rows.size(); ++j) {
        if (is_kept[j]) {
            goes[in_order[i++].second] = is_kept[j] == 1;
        }
    }
    std::vector<llama_snapkv_change> res;
    for (uint32_t i = 0, j = 0; i < kept.n_kept && j < added.size(); ++i) {
        if (goes[i]) {
            res.push_back({ head, i, added[j++] });
        }
    }
    return res;
}

bool llama_snapkv_ranker::rank(llama_snapkv_ranked & known, const llama_snapkv_queries & queries, const std::function<bool()> & stops) {
    const auto & before = *known.record;
    const uint32_t n_prefix = before.n_prompt - before.window;
    const uint32_t n_rows = n_asked(params, before.max_kept());
    llama_snapkv_ranked res;
    auto record = std::make_shared<llama_snapkv_record>(before);
    res.worth = known.worth;
    std::vector<std::vector<std::vector<llama_snapkv_change>>> changes;
    for (const auto & layer : before.layers) {
        changes.emplace_back(layer.n_head_kv);
    }
    const auto ask = [&](uint32_t ic, uint32_t head, llama_snapkv_votes_of_head & votes) {
        auto & kept = record->layers[ic];
        auto & worth = res.worth[ic];
        votes.count(vault, ic, head, lanes_of_answer(ic, head, queries), n_rows, params);
        for (uint32_t i = head * kept.n_kept; i < (head + 1) * kept.n_kept; ++i) {
            worth[i] = std::max(FADE * worth[i], votes.of_any(kept.ids[i]));
        }
        changes[ic][head] = choose(before.layers[ic], head, worth, n_prefix, votes);
        for (const auto & c : changes[ic][head]) {
            kept.ids[head * kept.n_kept + c.i] = c.id;
            worth[head * kept.n_kept + c.i] = votes.of_asked(c.id);
        }
    };
    if (!each_head(before, ask, stops)) {
        return false;
    }
    for (const auto & layer : changes) {
        res.changes.emplace_back();
        for (const auto & head : layer) {
            res.changes.back().insert(res.changes.back().end(), head.begin(), head.end());
        }
    }
    res.record = record;
    if (!gather(res, stops)) {
        return false;
    }
    res.bytes_votes = bytes_votes;
    known = std::move(res);
    return true;
}

bool llama_snapkv_ranker::gather(llama_snapkv_ranked & known, const std::function<bool()> & stops) const {
    struct part {
        uint32_t ic;
        bool is_v;
        size_t at;
    };
    std::vector<part> parts;
    size_t size = 0;
    for (uint32_t ic = 0; ic < known.changes.size(); ++ic) {
        const auto & layer = vault.layers[ic];
        for (const bool is_v : { false, true }) {
            parts.push_back({ ic, is_v, size });
            size += known.changes[ic].size() * ((is_v ? layer.row_v : layer.row_k) / layer.n_head_kv);
        }
    }
    known.rows.resize(size);
    return llama_snapkv_each(n_threads, parts.size(), [&](size_t i, uint32_t) {
        const auto & layer = vault.layers[parts[i].ic];
        const size_t head = (parts[i].is_v ? layer.row_v : layer.row_k) / layer.n_head_kv;
        uint8_t * to = known.rows.data() + parts[i].at;
        for (size_t j = 0; head > 0 && j < known.changes[parts[i].ic].size(); ++j) {
            const auto & c = known.changes[parts[i].ic][j];
            memcpy(to + j * head, vault.row(parts[i].is_v, parts[i].ic, c.id) + c.head * head, head);
        } }, stops);
}
