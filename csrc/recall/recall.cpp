#include "recall/recall.h"

#include "graph/runner.h"
#include "recall/swap.h"
#include "state/cells.h"
#include "state/params.h"
#include "upstream/access.h"

#include "llama-impl.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <functional>
#include <map>
#include <stdexcept>
#include <thread>

using access = llama_snapkv_access;

// tokens between two recalls, where it is left to us
static constexpr uint32_t EVERY = 16;
// beside a GPU: an H200 has a token of an 8B model in 3.5 ms, and 15 threads have compared its queries with 420 rows of each KV head by
// then (results/recall-cost-h200-llama31-8b.json). so rows come in when the ranking has ended, and recalls at a distance that their copies
// do not slow down by much
static constexpr uint32_t ROWS_PER_TOKEN_OF_DELAY = 320;
static constexpr uint32_t ROWS_PER_TOKEN = 192;

static bool is_on_host(const llama_kv_cache & base) {
    const auto & layers = access::layers(base);
    return std::all_of(layers.begin(), layers.end(), [](const auto & layer) { return ggml_backend_buffer_is_host(layer.k->buffer); });
}

// rows of each KV head that a ranking compares with the queries, two of each stretch of the index included
static uint32_t n_compared(const llama_snapkv_params & params, uint32_t n_prompt) {
    const uint32_t n_asked = llama_snapkv_ranker::n_asked(params, llama_snapkv_n_rows(params, n_prompt));
    return n_prompt <= n_asked ? n_prompt : n_asked + 2 * llama_snapkv_index::n_stretches(n_prompt);
}

static uint32_t tokens_for(uint32_t n_rows, uint32_t per_token) {
    return (n_rows + per_token - 1) / per_token;
}

uint32_t llama_snapkv_recall_every(const llama_snapkv_params & params, uint32_t n_prompt, bool on_host) {
    if (params.recall_every != UINT32_MAX) {
        return params.recall_every;
    }
    const uint32_t least = std::max({ EVERY, params.recall_queries, (uint32_t) std::max(params.recall_delay + 1, 0) });
    return on_host ? least : std::max(least, tokens_for(n_compared(params, n_prompt), ROWS_PER_TOKEN));
}

uint32_t llama_snapkv_recall_delay(const llama_snapkv_params & params, uint32_t n_prompt, bool on_host) {
    if (params.recall_delay >= 0) {
        return (uint32_t) params.recall_delay;
    }
    // where the cache is in host memory, the threads would compute tokens
    return on_host ? 0 : std::min((uint32_t) ((uint64_t) params.recall_every * 7 / 8), tokens_for(n_compared(params, n_prompt), ROWS_PER_TOKEN_OF_DELAY));
}

// a ranking, here or on a thread of its own
class llama_snapkv_ranking {
public:
    // queries: none where only what goes before a ranking is to be done
    llama_snapkv_ranking(llama_snapkv_ranker && given, llama_snapkv_ranked && given_known, llama_snapkv_queries && given_queries) :
        ranker(std::move(given)), ranked(std::move(given_known)), queries(std::move(given_queries)), before(ranked.record) {
    }

    ~llama_snapkv_ranking() {
        stop = true;
        if (thread.joinable()) {
            thread.join();
        }
    }

    // false: it was told to stop
    bool run(const std::function<bool()> & stops) {
        const int64_t t0 = ggml_time_us();
        const bool ok = ranker.prepare(ranked, stops) && (queries.layers.empty() || ranker.rank(ranked, queries, stops));
        ranked.seconds = (ggml_time_us() - t0) * 1e-6;
        return ok;
    }

    void start() {
        thread = std::thread([this] {
            try {
                run([this] { return (bool) stop; });
            } catch (...) {
                failed = std::current_exception();
            }
        });
    }

    llama_snapkv_ranked & wait() {
        if (thread.joinable()) {
            thread.join();
        }
        if (failed) {
            std::rethrow_exception(failed);
        }
        return ranked;
    }

    bool asks() const { return !queries.layers.empty(); }
    llama_snapkv_record_ptr of() const { return before; }

private:
    llama_snapkv_ranker ranker;
    llama_snapkv_ranked ranked;
    const llama_snapkv_queries queries;
    const llama_snapkv_record_ptr before;
    std::atomic<bool> stop = false;
    std::exception_ptr failed;
    std::thread thread;
};

namespace {

// of a sequence, whose rows are the vault's and not all in the cache
class recaller {
public:
    recaller(llama_context & ctx, llama_snapkv & sk, llama_seq_id seq_id, llama_snapkv_record_ptr record) :
        ctx(ctx), sk(sk), seq_id(seq_id), state(*sk.recalls.at(seq_id)), vault(sk.vaults.at(seq_id)), base(*llama_snapkv_memory_of(ctx).base), record(std::move(record)) {
    }

    uint32_t delay() const { return (uint32_t) state.params.recall_delay; }
    void prepare();
    void ask();
    void finish();

private:
    std::unique_ptr<llama_snapkv_ranking> make(llama_snapkv_queries && queries);

    llama_context & ctx;
    llama_snapkv & sk;
    const llama_seq_id seq_id;
    llama_snapkv_recall & state;
    llama_snapkv_vault & vault;
    llama_kv_cache & base;
    const llama_snapkv_record_ptr record;
};

} // namespace

std::unique_ptr<llama_snapkv_ranking> recaller::make(llama_snapkv_queries && queries) {
    std::vector<std::vector<int32_t>> readers;
    for (const auto & layer : record->layers) {
        readers.push_back(llama_snapkv_readers(base, layer.il));
    }
    if (state.known.record != record) {
        state.known = {};
        state.known.record = record;
    }
    llama_snapkv_ranked known;
    known.record = record;
    known.worth = state.known.worth;
    const uint32_t n_threads = ctx.get_cparams().n_threads;
    llama_snapkv_ranker ranker(vault, state.params, state.protected_spans, std::move(readers), delay() > 0 ? n_threads - 1 : n_threads);
    return std::make_unique<llama_snapkv_ranking>(std::move(ranker), std::move(known), std::move(queries));
}

// ahead of the first recall
void recaller::prepare() {
    if (delay() > 0 && !state.ranking && (state.known.record != record || state.known.worth.empty())) {
        state.ranking = make({});
        state.ranking->start();
    }
}

void recaller::ask() {
    llama_snapkv_queries queries = std::move(state.queries);
    state.queries.layers.clear();
    if (state.ranking) {
        auto & known = state.ranking->wait();
        state.bytes_votes = std::max(state.bytes_votes, known.bytes_votes);
        if (known.record == record) {
            state.known = std::move(known);
        }
        state.ranking.reset();
    }
    state.ranking = make(std::move(queries));
    if (delay() > 0) {
        state.ranking->start();
        return;
    }
    const auto callback = access::abort_callback(ctx);
    if (!state.ranking->run([&] { return callback && callback(access::abort_callback_data(ctx)); })) {
        state.ranking.reset();
        throw llama_snapkv_compute_error(GGML_STATUS_ABORTED);
    }
}

void recaller::finish() {
    const auto ranking = std::move(state.ranking);
    const int64_t t0 = ggml_time_us();
    auto & ranked = ranking->wait();
    const int64_t t1 = ggml_time_us();
    ctx.synchronize();
    const auto cells = llama_snapkv_cells_before(base, seq_id, record->pos_exact());
    if (cells.second != record->max_kept()) {
        throw std::runtime_error("the kept rows do not lie side by side: prefill the prompt again, or decode without recall");
    }
    llama_snapkv_recall_event event = {};
    for (const auto & changes : ranked.changes) {
        event.n_rows += changes.size();
    }
    state.events.reserve(state.events.size() + 1);
    llama_snapkv_swap swap(ctx, base, seq_id, vault, ranked, cells.first);
    event.n_bytes = swap.run();
    sk.of_vault[seq_id] = ranked.record;
    base.snapkv.set(seq_id, ranked.record);
    event.pos = base.seq_pos_max(seq_id);
    event.seconds_rank = ranked.seconds;
    event.seconds_wait = delay() > 0 ? (t1 - t0) * 1e-6 : ranked.seconds;
    event.seconds_copy = (ggml_time_us() - t1) * 1e-6;
    event.bytes_votes = state.bytes_votes = std::max(state.bytes_votes, ranked.bytes_votes);
    event.bytes_index = vault.index.bytes();
    ranked.rows = {};
    state.known = std::move(ranked);
    state.events.push_back(event);
}

llama_snapkv_recall::llama_snapkv_recall() = default;
llama_snapkv_recall::~llama_snapkv_recall() = default;

void llama_snapkv_recall_settle(llama_snapkv & sk, llama_seq_id seq_id) {
    const auto found = sk.recalls.find(seq_id);
    if (found != sk.recalls.end()) {
        found->second->ranking.reset();
    }
}

void llama_snapkv_recall_begin(llama_context & ctx, llama_snapkv & sk, const llama_snapkv_prompt & prompt) {
    sk.recalls.erase(prompt.seq_id);
    if (sk.params.recall_every > 0) {
        auto recall = std::make_shared<llama_snapkv_recall>();
        recall->params = sk.params;
        const bool on_host = is_on_host(*llama_snapkv_memory_of(ctx).base);
        recall->params.recall_every = llama_snapkv_recall_every(sk.params, prompt.n_tokens, on_host);
        recall->params.recall_delay = (int32_t) llama_snapkv_recall_delay(recall->params, prompt.n_tokens, on_host);
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
        try {
            advance(answer);
        } catch (const llama_snapkv_compute_error & e) {
            failed = e.status == GGML_STATUS_ABORTED ? failed : std::current_exception();
        } catch (...) {
            failed = std::current_exception();
        }
    }
    if (!is_complete) {
        throw std::runtime_error("a layer's attention does not read the cache itself, so that whose its queries are is not to be told: decode without recall");
    }
    if (failed) {
        std::rethrow_exception(failed);
    }
}

// by the tokens of the batch that are this sequence's
void llama_snapkv_recall_step::advance(const answer & answer) {
    auto & recall = *answer.recall;
    recall.n_since += answer.n_tokens;
    recall.n_asked += answer.n_tokens;
    const auto work = [&] { return recaller(ctx, *sk, answer.seq_id, incomplete(ctx, *sk, answer.seq_id)); };
    if (recall.ranking && recall.ranking->of() != incomplete(ctx, *sk, answer.seq_id)) {
        recall.ranking.reset(); // the rows are others by now
    }
    const bool is_due = recall.n_since >= recall.params.recall_every && !recall.queries.layers.empty();
    if (recall.ranking && recall.ranking->asks() && (is_due || recall.n_asked >= work().delay())) {
        work().finish();
    }
    if (!is_due) {
        work().prepare();
        return;
    }
    recall.n_since = 0;
    recall.n_asked = 0;
    work().ask();
    if (work().delay() == 0) {
        work().finish();
    }
}
