// Several GPUs that compute at the same time: a group's layers are dealt to devices which do late what they are given, and know nothing
// of each other but by events. Logits, kept rows and what is decoded afterwards are those of one device.
//
//   test-snapkv-overlap

#include "environment.h"
#include "imaginary-device.h"
#include "test-snapkv-sequences.h"

#include "proof/tiny-model.h"
#include "staging/plan.h"
#include "upstream/devices.h"

#include "llama-context.h"
#include "llama-cpp.h"
#include "llama-model.h"
#include "snapkv.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

static constexpr uint32_t N = 420;
static constexpr uint32_t N_CHUNKS = 9;
static constexpr uint32_t CHUNK = 50; // no multiple of the mask's alignment, and the last one is short

static llama_context_params context_params(ggml_type type) {
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = 2560;
    cp.n_batch = N;
    cp.n_ubatch = CHUNK;
    cp.n_threads = cp.n_threads_batch = 1;
    cp.type_k = cp.type_v = type;
    cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    cp.no_perf = true;
    return cp;
}

struct result {
    std::vector<float> logits;
    std::vector<float> decoded; // of tokens after it
    std::vector<int32_t> kept;
    llama_snapkv_stats stats = {};
    uint32_t n_supplied = 0; // graphs of the prefill to which the scheduler had to copy something
};

static llama_snapkv_params snapkv_params() {
    llama_snapkv_params sp = llama_snapkv_default_params();
    sp.budget = 100;
    sp.window_size = 8;
    sp.decode_cells = 32;
    sp.vault = true;
    return sp;
}

static result run(llama_model * model, ggml_type type, const llama_snapkv_params & sp, bool yields = false, uint32_t n = N) {
    result res;
    llama_context_ptr ctx(llama_snapkv_init_from_model(model, context_params(type), sp));
    const auto tokens = make_tokens(model, n, 1);
    llama_snapkv_prompt prompt = llama_snapkv_default_prompt(0, tokens.data(), n);
    if (yields) {
        prompt.on_yield = [](void *) { return true; };
    }
    imaginary::n_at_once = imaginary::n_supplied = imaginary::n_beside = 0;
    CHECK(ctx && llama_snapkv_prefill(ctx.get(), &prompt) == 0);
    if (!ctx) {
        return res;
    }
    res.n_supplied = imaginary::n_supplied;
    res.logits = logits(ctx.get());
    res.stats.size = sizeof(res.stats);
    CHECK(llama_snapkv_get_stats(ctx.get(), &res.stats));
    for (uint32_t il = 0; il < llama_snapkv_n_layer(ctx.get()); ++il) {
        for (uint32_t h = 0; h < llama_snapkv_n_head_kv(ctx.get(), il); ++h) {
            std::vector<int32_t> ids(sp.budget);
            const int32_t n = llama_snapkv_kept(ctx.get(), 0, il, h, ids.data(), ids.size());
            CHECK(n > 0);
            res.kept.insert(res.kept.end(), ids.begin(), ids.begin() + std::max(n, 0));
        }
    }
    auto more = make_tokens(model, 5, 1);
    CHECK(llama_decode(ctx.get(), llama_batch_get_one(more.data(), 5)) == 0);
    res.decoded = logits(ctx.get());
    return res;
}

struct sharing {
    std::vector<float> split; // of the layers and the output, over so many devices
    uint32_t n_layer;
    uint32_t max_dealt; // most layers of a group that are dealt: as many to each as the one with fewest has
};

static llama_model_ptr make_model(const sharing & how) {
    std::vector<ggml_backend_dev_t> devs;
    for (size_t i = 0; i < how.split.size(); ++i) {
        devs.push_back(imaginary::device(i));
    }
    llama_snapkv_tiny_shape shape;
    shape.head_dim_k = shape.head_dim_v = 64;
    shape.n_head = 4;
    shape.n_layer = how.n_layer;
    return llama_snapkv_tiny_model(devs, shape, how.split);
}

static void set_delays(int a, int b, int c, int of_copies = 0) {
    imaginary::delays[0] = a;
    imaginary::delays[1] = b;
    imaginary::delays[2] = c;
    imaginary::copy_delay = of_copies;
}

// in each way of sharing, whichever device is behind
static void test_exact(const sharing & how, ggml_type type, const std::vector<uint32_t> & groups) {
    const auto model = make_model(how);
    const auto alone = make_model({ { 1.0f }, how.n_layer, 0 });
    auto tokens = make_tokens(model.get(), N, 1);
    llama_context_ptr plain(llama_init_from_model(model.get(), context_params(type)));
    CHECK(plain && llama_decode(plain.get(), llama_batch_get_one(tokens.data(), N)) == 0);
    const auto expected = logits(plain.get());

    const auto n_devices = (uint32_t) how.split.size();
    const std::string name = std::to_string(n_devices) + " devices, " + std::to_string(how.n_layer) + " layers, " + ggml_type_name(type);
    for (const uint32_t group : groups) {
        for (const auto hidden : { LLAMA_SNAPKV_HIDDEN_STATE_AUTO, LLAMA_SNAPKV_HIDDEN_STATE_HOST }) {
            llama_snapkv_params sp = snapkv_params();
            sp.layer_group = group;
            sp.hidden_state = hidden;
            current = name + ", G = " + std::to_string(group) + (hidden == LLAMA_SNAPKV_HIDDEN_STATE_HOST ? ", hidden state in host memory" : "");
            set_delays(0, 0, 0);
            const auto one = run(alone.get(), type, sp);
            CHECK(one.logits == expected);
            CHECK(one.stats.bytes_weights_lent == 0);
            for (const auto & [a, b, c, copies] : { std::tuple(0, 2000, 2000, 0), std::tuple(2000, 0, 0, 0), std::tuple(0, 0, 0, 3000) }) {
                set_delays(a, b, c, copies);
                const auto found = run(model.get(), type, sp);
                CHECK(found.logits == expected);
                CHECK(found.decoded == one.decoded);
                CHECK(found.kept == one.kept);
                CHECK(found.n_supplied <= N_CHUNKS); // each chunk's embeddings and inputs once; all else is where it is read
                const uint32_t g = found.stats.layer_group;
                CHECK((found.stats.bytes_weights_lent > 0) == (g > 1 && g <= how.max_dealt));
                CHECK((found.stats.bytes_hidden_host > 0) == (hidden == LLAMA_SNAPKV_HIDDEN_STATE_HOST && g < how.n_layer));
                CHECK(g > 1 || imaginary::n_at_once == 1);
                if (g > 1 && g <= how.max_dealt && c > 0) { // the last one is behind: the others have gone on
                    CHECK(imaginary::n_at_once >= 2);
                }
            }
        }
    }
}

static const sharing HALVES = { { 1, 1 }, 7, 6 };

// others may go on after each chunk, and a prompt of few chunks is not worth it: nothing is dealt, and the numbers are the same
static void test_not_dealt() {
    const auto model = make_model(HALVES);
    set_delays(0, 1000, 0);
    llama_snapkv_params sp = snapkv_params();
    sp.layer_group = 2;
    current = "dealt";
    const auto dealt = run(model.get(), GGML_TYPE_F16, sp);
    CHECK(dealt.stats.bytes_weights_lent > 0);
    current = "others between chunks";
    const auto waiting = run(model.get(), GGML_TYPE_F16, sp, true);
    CHECK(waiting.stats.bytes_weights_lent == 0 && imaginary::n_at_once == 1);
    CHECK(waiting.logits == dealt.logits && waiting.decoded == dealt.decoded && waiting.kept == dealt.kept);
    current = "few chunks";
    sp.n_ubatch = 60;
    CHECK(run(model.get(), GGML_TYPE_F16, sp).stats.bytes_weights_lent == 0);
    current = "a backend whose devices do not wait for each other";
    sp = snapkv_params();
    sp.layer_group = 2;
    imaginary::backend_name = "Vulkan";
    const auto each = run(model.get(), GGML_TYPE_F16, sp);
    imaginary::backend_name = "CUDA";
    CHECK(each.stats.bytes_weights_lent == 0 && imaginary::n_at_once == 1);
    CHECK(each.logits == dealt.logits && each.decoded == dealt.decoded && each.kept == dealt.kept);
}

// buffers that grow with the prompt are planned once: a plan that a chunk outgrows is made anew when all devices are at rest
static void test_growing() {
    static constexpr uint32_t N_LONG = 2304;
    const auto model = make_model(HALVES);
    set_delays(3000, 3000, 0);
    llama_snapkv_params sp = snapkv_params();
    sp.layer_group = 2;
    sp.n_ubatch = 128;
    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0 }) {
        current = std::string("many chunks, ") + ggml_type_name(type);
        const auto found = run(model.get(), type, sp, false, N_LONG);
        CHECK(found.stats.bytes_weights_lent > 0);
        CHECK(imaginary::n_beside > N_LONG / sp.n_ubatch * 3 / 2); // of three groups of two layers each
    }
}

// where memory is short, plans become smaller; the last one deals nothing
static void test_memory() {
    const auto model = make_model(HALVES);
    set_delays(0, 1000, 0);
    llama_snapkv_params sp = snapkv_params();
    current = "memory for all";
    const auto all = run(model.get(), GGML_TYPE_F16, sp);
    const size_t memory = imaginary::memory;
    imaginary::memory = 1;
    current = "no memory";
    const auto little = run(model.get(), GGML_TYPE_F16, sp);
    imaginary::memory = memory;
    CHECK(little.stats.layer_group <= all.stats.layer_group && little.stats.bytes_hidden_host > 0);
    CHECK(little.kept == all.kept && little.logits == all.logits);
    for (const auto & [part, expected] : { std::pair("hidden state of two chunks", -2), std::pair("lent weights", 0), std::pair("compute", -2), std::pair("input", -2) }) {
        current = part;
        set_variable("SNAPKV_TEST_FAIL_ALLOC", part);
        llama_context_ptr ctx(llama_snapkv_init_from_model(model.get(), context_params(GGML_TYPE_F16), sp));
        const auto tokens = make_tokens(model.get(), N, 1);
        const llama_snapkv_prompt prompt = llama_snapkv_default_prompt(0, tokens.data(), N);
        const int32_t rc = ctx ? llama_snapkv_prefill(ctx.get(), &prompt) : 0;
        set_variable("SNAPKV_TEST_FAIL_ALLOC", nullptr);
        CHECK(rc == expected && (rc != 0 || logits(ctx.get()) == all.logits)); // without lent weights nothing is dealt
        // and then it goes on as if nothing had been
        CHECK(llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, -1, -1));
        CHECK(llama_snapkv_prefill(ctx.get(), &prompt) == 0 && logits(ctx.get()) == all.logits);
    }
}

// a caller who stops it while graphs are in flight on all devices
static void test_abort() {
    const auto model = make_model(HALVES);
    set_delays(0, 1000, 0);
    llama_snapkv_params sp = snapkv_params();
    sp.layer_group = 2;
    current = "aborted";
    const auto expected = run(model.get(), GGML_TYPE_F16, sp);
    llama_context_ptr ctx(llama_snapkv_init_from_model(model.get(), context_params(GGML_TYPE_F16), sp));
    const auto tokens = make_tokens(model.get(), N, 1);
    llama_snapkv_prompt prompt = llama_snapkv_default_prompt(0, tokens.data(), N);
    prompt.progress = [](uint64_t done, uint64_t total, void *) { return done * 5 < total * 2; };
    CHECK(llama_snapkv_prefill(ctx.get(), &prompt) == 2);
    prompt.progress = nullptr;
    CHECK(llama_snapkv_prefill(ctx.get(), &prompt) == 0 && logits(ctx.get()) == expected.logits);
}

int main() {
    imaginary::is_late = true;
    imaginary::backend_name = "CUDA"; // whose devices wait for each other
    ggml_backend_load_all();
    ggml_backend_register(imaginary::reg());
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    const llama_snapkv_proving proving;
    test_not_dealt();
    test_growing();
    test_memory();
    test_abort();
    test_exact(HALVES, GGML_TYPE_F16, { 0, 1, 2, 5, UINT32_MAX });
    test_exact({ { 3, 2 }, 7, 4 }, GGML_TYPE_Q8_0, { 3, 5 });
    test_exact({ { 1, 1, 1 }, 11, 9 }, GGML_TYPE_F16, { 0, 2, 5 });
    printf("%s\n", n_failed ? "FAILED" : "OK");
    return n_failed ? 1 : 0;
}
