// Selection on the host: order, ties, sinks, NaN, and the share of attention mass that is kept.

#include "evict/rank.h"

#include <cmath>
#include <cstdio>

static int n_failed = 0;

#define CHECK(x)                                           \
    do {                                                   \
        if (!(x)) {                                        \
            printf("%s:%d: %s\n", __FILE__, __LINE__, #x); \
            n_failed++;                                    \
        }                                                  \
    } while (0)

using ids = std::vector<int32_t>;

int main() {
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
