// Selection on the host: order, ties, sinks, NaN, and the share of attention mass that is kept; which rows a selective prefill lets go on.

#include "check.h"

#include "evict/rank.h"
#include "evict/selection.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

using ids = std::vector<int32_t>;

static bool has(const ids & rows, int32_t row) {
    return std::find(rows.begin(), rows.end(), row) != rows.end();
}

// 400 tokens, of which 75 go on, in 10 runs, after 4 of 8 layers
static void test_selection() {
    const std::vector<llama_token> tokens(400, 1);
    const auto prompt = llama_snapkv_default_prompt(0, tokens.data(), 400);
    llama_snapkv_task task{ prompt, 16 };
    task.n_kept = task.n_kept_max = 32;
    auto params = llama_snapkv_default_params();
    params.prefill = LLAMA_SNAPKV_PREFILL_SELECTIVE;
    params.select_share = 0.1875f;
    params.select_min = 1;
    params.select_depth = 0.5f;
    params.select_settled = 0.3f;

    // votes of a layer to come for rows from..to
    auto votes = [&](int from, int to, float each) {
        std::vector<float> res(task.n_prefix(), 0.0f);
        std::fill(res.begin() + from, res.begin() + to, each);
        return res;
    };
    llama_snapkv_selection selection(params, task, 16, 8);
    CHECK(!selection.wants_look(2, 3) && selection.wants_look(3, 4));
    selection.add(4, votes(200, 300, 9.0f));
    CHECK(!selection.choose(3)); // too early

    // one layer gives all to a few rows, two others give more in sum to many: a layer has one vote, and it is not outvoted
    CHECK(selection.wants_look(4, 5));
    selection.add(4, votes(100, 104, 0.01f));
    selection.add(5, votes(200, 264, 9.0f));
    selection.add(6, votes(200, 264, 9.0f));
    CHECK(selection.choose(4));
    const auto & rows = selection.rows();
    CHECK(rows.size() == 80 && std::is_sorted(rows.begin(), rows.end()));
    CHECK(has(rows, 0) && has(rows, 384) && has(rows, 399)); // what draws attention, and those that vote
    CHECK(has(rows, 96) && has(rows, 103));                  // in runs
    CHECK(has(rows, 200) && !has(rows, 264));                // the look before no longer counts
    CHECK(selection.get_settled() > 0.3 && !selection.wants_look(5, 6));

    // looks that do not agree, and votes that are no numbers
    llama_snapkv_selection other(params, task, 16, 8);
    other.add(4, votes(200, 240, 1.0f));
    CHECK(!other.choose(3));
    other.add(4, votes(300, 340, 1.0f));
    CHECK(!other.choose(4) && other.get_settled() == 0.0 && other.rows().empty());
    other.add(5, votes(300, 340, NAN));
    CHECK(other.choose(5) && other.get_settled() == 1.0);

    // where the least number is all there are, nobody looks; where the share is all, all go on
    params.select_min = 400;
    CHECK(!llama_snapkv_selection(params, task, 16, 8).wants_look(3, 4));
    params.select_share = 1.0f;
    llama_snapkv_selection all(params, task, 16, 8);
    CHECK(all.wants_look(3, 4));
    all.add(4, votes(200, 240, 1.0f));
    CHECK(!all.choose(3));
    all.add(4, votes(200, 240, 1.0f));
    CHECK(all.choose(4) && all.rows().size() == 400);
}

int main() {
    test_selection();
    CHECK(llama_snapkv_select({ 3, 1, 2, 5, 4 }, 2, 0) == ids({ 3, 4 }));
    CHECK(llama_snapkv_select({ 5, 1, 2, 3, 4 }, 3, 0) == ids({ 0, 3, 4 }));     // ascending, not by score
    CHECK(llama_snapkv_select({ 1, 1, 1, 1, 1 }, 3, 0) == ids({ 0, 1, 2 }));     // ties: the lower position
    CHECK(llama_snapkv_select({ 0, 2, 1, 1, 1 }, 2, 0) == ids({ 1, 2 }));
    CHECK(llama_snapkv_select({ 0, 0, 9, 9, 9 }, 3, 2) == ids({ 0, 1, 2 }));     // sinks count
    CHECK(llama_snapkv_select({ 9, 0, 9, 9, 9 }, 3, 1) == ids({ 0, 2, 3 }));     // a sink with a high score counts once
    CHECK(llama_snapkv_select({ 1, 2 }, 2, 0) == ids({ 0, 1 }));
    CHECK(llama_snapkv_select({ 1, 2 }, 5, 9) == ids({ 0, 1 }));
    CHECK(llama_snapkv_select({ 1, 2, 3 }, 0, 0).empty());
    CHECK(llama_snapkv_select({}, 3, 0).empty());
    CHECK(llama_snapkv_select({ NAN, 1, NAN, 2 }, 2, 0) == ids({ 1, 3 }));       // NaN last
    CHECK(llama_snapkv_select({ NAN, -1, NAN, -2 }, 3, 0) == ids({ 0, 1, 3 }));

    // against a plain sort, sizes around the boundaries
    for (const uint32_t n : { 1u, 2u, 31u, 32u, 33u, 1023u, 1025u }) {
        std::vector<float> scores(n);
        for (uint32_t i = 0; i < n; ++i) {
            scores[i] = (float) ((i * 2654435761u) % 97);
        }
        for (const uint32_t k : { 1u, n / 2, n }) {
            const ids got = llama_snapkv_select(scores, k, 0);
            CHECK(got.size() == k);
            std::vector<bool> in(n, false);
            for (const int32_t i : got) {
                in[i] = true;
            }
            for (uint32_t a = 0; a < n; ++a) {
                for (uint32_t b = 0; b < n; ++b) {
                    if (in[a] && !in[b]) {
                        CHECK(scores[a] > scores[b] || (scores[a] == scores[b] && a < b));
                    }
                }
            }
        }
    }

    CHECK(std::fabs(llama_snapkv_coverage_of({ 1, 2, 3, 4 }, { 1 }, 1) - 0.6) < 1e-12);
    CHECK(llama_snapkv_coverage_of({ 1, 2, 3, 4 }, { 0, 1 }, 2) == 1.0);
    CHECK(llama_snapkv_coverage_of({ 0, 0 }, {}, 1) == 1.0);

    printf("%s\n", n_failed ? "FAILED" : "OK");
    return n_failed ? 1 : 0;
}
