// The register of backends. Devices that nobody has proven: refused with a reason; and where SNAPKV_UNPROVEN=1 tries them, a small model
// is computed there first, and the prefill does not rest on the row stride of a mask, which some backends ignore, and leaves
// neighbours in the graph which some compute as one, also where nodes are reordered. Two devices share a model's layers.
//
//   test-snapkv-devices                  # the register, fused ops, and proofs with models of their own
//   test-snapkv-devices MODEL.gguf ...

#include "environment.h"
#include "imaginary-device.h"
#include "test-snapkv-sequences.h"

#include "evict/stock.h"
#include "staging/plan.h"
#include "upstream/devices.h"

#include "ggml-cpp.h"
#include "llama-context.h"
#include "llama-cpp.h"
#include "llama-model.h"
#include "snapkv.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

static constexpr uint32_t N = 420;
static constexpr uint32_t BUDGET = 300;
static constexpr uint32_t WINDOW = 8;

static void test_table() {
    for (const char * name : { "CPU", "CUDA", "BLAS" }) {
        CHECK(llama_snapkv_proven(name) && llama_snapkv_backend_of(std::string(name)).reads_mask_stride);
    }
    for (const char * name : { "MTL", "ROCm" }) {
        CHECK(!llama_snapkv_proven(name) && llama_snapkv_backend_of(std::string(name)).reads_mask_stride);
    }
    for (const char * name : { "Vulkan", "WebGPU", "SYCL", "RPC", "RPC[host:50052]", "OpenCL", "a new one", "" }) {
        CHECK(!llama_snapkv_proven(name) && !llama_snapkv_backend_of(std::string(name)).reads_mask_stride);
    }
    CHECK(!llama_snapkv_proven(nullptr));
    CHECK(strcmp(llama_snapkv_backend_of(std::string("RPC[host:50052]")).name, "RPC") == 0);
    CHECK(strcmp(llama_snapkv_backend_of(std::string("a new one")).name, "") == 0);

    uint32_t n = 0;
    llama_snapkv_backend_info info = {};
    CHECK(!llama_snapkv_get_backend(0, &info)); // of another version
    for (info.size = sizeof(info); llama_snapkv_get_backend(n, &info); ++n) {
        const auto line = llama_snapkv_backend_of(std::string(info.name));
        CHECK(line.proven == info.proven && line.checked == info.checked && !(line.proven && line.checked) && line.proven_sharing == info.proven_sharing && line.proven_selective == info.proven_selective && line.proven_recall == info.proven_recall && line.fused == info.fused && line.reads_mask_stride == !info.copies_mask);
        CHECK(info.title[0] && strchr(info.evidence, '.'));
        // of what is not proven, no kind of models is
        CHECK(info.proven || info.checked || !(info.proven_recurrent || info.proven_latent || info.proven_wide || info.proven_sharing || info.proven_selective || info.proven_recall));
    }
    CHECK(n >= 10);
    CHECK(llama_snapkv_backend_of(imaginary::cpu()).proven && llama_snapkv_backend_of(imaginary::cpu()).proven_latent);
    const auto cuda = llama_snapkv_backend_of(std::string("CUDA"));
    CHECK(cuda.proven_latent && cuda.proven_wide && cuda.proven_sharing);
    CHECK(llama_snapkv_reads_mask_stride({ imaginary::cpu() }));
    CHECK(!llama_snapkv_reads_mask_stride({ imaginary::cpu(), imaginary::device() }));
}

static llama_context_params context_params(ggml_type type, bool op_offload) {
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = 1024;
    cp.n_batch = N;
    cp.n_ubatch = 50; // no multiple of the mask's alignment
    cp.n_threads = cp.n_threads_batch = 1;
    cp.type_k = cp.type_v = type;
    cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    cp.op_offload = op_offload;
    cp.no_perf = true;
    return cp;
}

static llama_snapkv_params snapkv_params() {
    llama_snapkv_params sp = llama_snapkv_default_params();
    sp.budget = BUDGET;
    sp.window_size = WINDOW;
    sp.decode_cells = 32;
    sp.vault = true;
    return sp;
}

// may fused ops run there? the register says it, and of a backend that is in none of its lines the device
static void test_fused_ops() {
    ggml_context_ptr gctx(ggml_init({ 64 * ggml_tensor_overhead(), nullptr, /*no_alloc =*/true }));
    llama_snapkv_observation obs;
    obs.q = ggml_new_tensor_3d(gctx.get(), GGML_TYPE_F32, 64, WINDOW, 4);
    obs.k = ggml_new_tensor_3d(gctx.get(), GGML_TYPE_F16, 64, 256, 2);
    const auto votes = llama_snapkv_graph_score_fused(gctx.get(), obs, snapkv_params(), WINDOW, 32);
    CHECK(llama_snapkv_supports(imaginary::cpu(), votes));
    CHECK(!llama_snapkv_supports(imaginary::device(0), votes));
    imaginary::knows_all = true;
    for (const auto & [name, fused] : { std::pair("Imaginary", true), std::pair("MTL", true), std::pair("Vulkan", false), std::pair("RPC[host:50052]", false) }) {
        imaginary::backend_name = name;
        CHECK(llama_snapkv_supports(imaginary::device(0), votes) == fused);
    }
    imaginary::backend_name = "Imaginary";
    imaginary::knows_all = false;
}

// layers are split between two devices in the proportion that is given, else on the first
static llama_model_ptr load(const char * path, int32_t n_gpu_layers, const float * split = nullptr) {
    ggml_backend_dev_t devs[] = { imaginary::device(0), split ? imaginary::device(1) : nullptr, nullptr };
    llama_model_params mp = llama_model_default_params();
    mp.n_gpu_layers = n_gpu_layers;
    mp.devices = devs;
    mp.tensor_split = split;
    return llama_model_ptr(llama_model_load_from_file(path, mp));
}

static std::string arch_of(const llama_model * model) {
    char arch[64] = "";
    llama_model_meta_val_str(model, "general.architecture", arch, sizeof(arch));
    return arch;
}

// exact prefills are proven there, selective ones and recalls are not
static void test_what_is_not_exact_is_refused(const char * path) {
    const auto model = load(path, 99);
    const llama_snapkv_proving proving;
    auto sp = snapkv_params();
    CHECK(llama_snapkv_supported(model.get(), context_params(GGML_TYPE_F16, true), sp));
    sp.prefill = LLAMA_SNAPKV_PREFILL_SELECTIVE;
    sp.vault = false;
    CHECK(!llama_snapkv_supported(model.get(), context_params(GGML_TYPE_F16, true), sp));
    for (const char * part : { "selective prefill on Imaginary0", "set prefill to exact", "SNAPKV_UNPROVEN=1" }) {
        CHECK(strstr(llama_snapkv_last_error(), part));
    }
    sp = snapkv_params();
    sp.vault = true;
    sp.recall_every = 16;
    CHECK(!llama_snapkv_supported(model.get(), context_params(GGML_TYPE_F16, true), sp));
    const char * what = model->hparams.is_mla() ? "recall while answering with latent attention on Imaginary0" : "recall while answering on Imaginary0";
    for (const char * part : { what, "set recall_every to 0", "SNAPKV_UNPROVEN=1" }) {
        CHECK(strstr(llama_snapkv_last_error(), part));
    }
}

static void test_refusal(const char * path) {
    const auto model = load(path, 99);
    const auto cp = context_params(GGML_TYPE_F16, true);
    CHECK(!llama_snapkv_supported(model.get(), cp, snapkv_params()));
    for (const char * part : { "nobody has proven", "Imaginary0", "backend Imaginary", "in no line of the register", "CPU", "SNAPKV_UNPROVEN=1" }) {
        CHECK(strstr(llama_snapkv_last_error(), part));
    }
    CHECK(strstr(llama_snapkv_last_error(), "CUDA"));
    CHECK(!llama_snapkv_init_from_model(model.get(), cp, snapkv_params()));
    for (const char * value : { "0", "", "yes" }) {
        set_variable(LLAMA_SNAPKV_UNPROVEN, value);
        CHECK(!llama_snapkv_supported(model.get(), cp, snapkv_params()));
    }
    set_variable(LLAMA_SNAPKV_UNPROVEN, nullptr);

    // in host memory it still computes what is offered to it, unless nothing is
    const auto on_host = load(path, 0);
    CHECK(!llama_snapkv_supported(on_host.get(), context_params(GGML_TYPE_F16, true), snapkv_params()));
    imaginary::n_attention = 0;
    llama_context_ptr ctx(llama_snapkv_init_from_model(on_host.get(), context_params(GGML_TYPE_F16, false), snapkv_params()));
    const auto tokens = make_tokens(on_host.get(), N, 1);
    CHECK(ctx && prefill(ctx.get(), tokens) == 0);
    CHECK(imaginary::n_attention == 0);
}

static void check_parts(const char * text, const std::vector<const char *> & parts) {
    for (const char * part : parts) {
        if (!strstr(text, part)) {
            printf("%s: no \"%s\" in \"%s\"\n", current.c_str(), part, text);
            n_failed++;
        }
    }
}

// of which kind a model is that nobody has run on a backend which is checked; null: of none
static const char * kind_to_be_proven(const llama_model * model) {
    if (llama_model_is_hybrid(model)) {
        return "models with recurrent layers";
    }
    if (model->hparams.is_mla()) {
        return "models with latent attention (MLA)";
    }
    if (model->hparams.n_embd_head_k_full > 256) {
        return "models with heads of more than 256 elements";
    }
    return arch_of(model) == "gemma4" ? "models whose layers share KV" : nullptr;
}

// a type of the KV cache for each case: what came out of a check is kept
static void test_check(const char * path) {
    const auto model = load(path, 99);
    const auto on_host = load(path, 0);
    imaginary::is_wrong = true;
    set_variable(LLAMA_SNAPKV_UNPROVEN, "1");
    const auto cp = context_params(GGML_TYPE_BF16, true);
    CHECK(!llama_snapkv_supported(model.get(), cp, snapkv_params()));
    check_parts(llama_snapkv_last_error(), { "nobody has proven", "Imaginary0", "the check says no", "elements", "differ from those of llama_decode() by", "SNAPKV_UNPROVEN=2" });
    CHECK(!llama_snapkv_init_from_model(model.get(), cp, snapkv_params()));

    set_variable(LLAMA_SNAPKV_UNPROVEN, "2");
    llama_context_ptr ctx(llama_snapkv_init_from_model(model.get(), cp, snapkv_params()));
    CHECK(ctx);
    check_parts(llama_snapkv_last_warning(), { "nobody has proven", "Imaginary0", "SNAPKV_UNPROVEN=2", "differ from those of llama_decode() by" });
    imaginary::is_wrong = false;

    set_variable(LLAMA_SNAPKV_UNPROVEN, "1");
    CHECK(llama_snapkv_supported(model.get(), context_params(GGML_TYPE_F16, true), snapkv_params()));
    check_parts(llama_snapkv_last_warning(), { "nobody has proven", "Imaginary0", "SNAPKV_UNPROVEN=1", "difference 0" });
    CHECK(llama_snapkv_supported(on_host.get(), context_params(GGML_TYPE_F16, false), snapkv_params()));
    CHECK(strcmp(llama_snapkv_last_warning(), "") == 0);
    set_variable(LLAMA_SNAPKV_UNPROVEN, nullptr);

    // of a backend that is checked without being asked to, but for models that nobody has run there
    imaginary::is_checked = true;
    if (const char * kind = kind_to_be_proven(model.get())) {
        CHECK(!llama_snapkv_supported(model.get(), context_params(GGML_TYPE_F16, true), snapkv_params()));
        check_parts(llama_snapkv_last_error(), { "nobody has proven", kind, "SNAPKV_UNPROVEN=1" });
    } else {
        CHECK(llama_snapkv_supported(model.get(), context_params(GGML_TYPE_F16, true), snapkv_params()));
        check_parts(llama_snapkv_last_warning(), { "Imaginary0 was checked", "difference 0" });
        CHECK(!llama_snapkv_supported(model.get(), cp, snapkv_params()));
        check_parts(llama_snapkv_last_error(), { "the check says no", "SNAPKV_UNPROVEN=2" });
    }
    imaginary::is_checked = false;
}

static void test_proofs() {
    for (const char * device : { "CPU", "Imaginary0" }) {
        for (const uint32_t group : { 1u, UINT32_MAX }) {
            llama_snapkv_proof proof = llama_snapkv_default_proof();
            proof.head_dim_k = proof.head_dim_v = 64;
            proof.n_head = 4;
            proof.n_tokens = 520;
            proof.layer_group = group;
            current = device;
            imaginary::n_attention = 0;
            CHECK(llama_snapkv_prove(device, &proof));
            CHECK((imaginary::n_attention > 0) == (strcmp(device, "Imaginary0") == 0));
            CHECK(proof.max_diff == 0.0 && proof.max_diff_cpu == 0.0 && proof.max_logit > 0.1);
            CHECK(proof.seconds_plain > 0.0 && proof.seconds_prefill > 0.0 && proof.decode_speed > 0.0);
            if (strcmp(device, "CPU") == 0) {
                CHECK(proof.ratio_fused == 1.0 && proof.max_diff_ops >= 0.0 && proof.max_diff_ops < 1e-4);
            } else {
                CHECK(proof.ratio_fused == 0.0 && proof.max_diff_ops == -1.0);
            }
        }
    }
    // with five layers at a time, what a prefill adds reaches to the end of the graph
    imaginary::reorders = true;
    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0 }) {
        llama_snapkv_proof proof = llama_snapkv_default_proof();
        proof.n_tokens = 520;
        proof.layer_group = UINT32_MAX;
        proof.type_k = proof.type_v = type;
        imaginary::n_joined = 0;
        CHECK(llama_snapkv_prove("Imaginary0", &proof) && proof.max_diff == 0.0 && imaginary::n_joined > 0);
    }
    imaginary::reorders = false;

    llama_snapkv_proof proof = llama_snapkv_default_proof();
    imaginary::is_wrong = true;
    CHECK(llama_snapkv_prove("Imaginary0", &proof) && proof.max_diff > 1e-3 && proof.max_diff_cpu == 0.0);
    imaginary::is_wrong = false;
    CHECK(!llama_snapkv_prove("Nowhere", &proof) && strstr(llama_snapkv_last_error(), "Nowhere"));
    proof.n_tokens = 100;
    CHECK(!llama_snapkv_prove("CPU", &proof) && strstr(llama_snapkv_last_error(), "at least"));
    proof.size = 0;
    CHECK(!llama_snapkv_prove("CPU", &proof) && strstr(llama_snapkv_last_error(), "version"));
}

// logits after a prefill and after one more token, with layers that keep different numbers of rows
static std::vector<std::vector<float>> run(llama_model * model, ggml_type type, bool op_offload, uint32_t group) {
    llama_snapkv_params sp = snapkv_params();
    sp.layer_group = group;
    sp.ops = LLAMA_SNAPKV_OPS_GGML;
    llama_context_ptr ctx(llama_snapkv_init_from_model(model, context_params(type, op_offload), sp));
    auto tokens = make_tokens(model, N, 1);
    CHECK(ctx && prefill(ctx.get(), tokens) == 0);
    if (!ctx) {
        return {};
    }
    std::vector<std::vector<float>> res = { logits(ctx.get()) };

    std::vector<uint32_t> n_kept;
    std::vector<int32_t> ids;
    for (uint32_t ic = 0; ic < llama_snapkv_n_layer(ctx.get()); ++ic) {
        n_kept.push_back(BUDGET - WINDOW - (ic == 0 ? 0 : 256));
        for (uint32_t h = 0; h < llama_snapkv_n_head_kv(ctx.get(), ic); ++h) {
            for (uint32_t i = 0; i < n_kept.back(); ++i) {
                ids.push_back((int32_t) (i + i / 4 + h));
            }
        }
    }
    CHECK(llama_snapkv_select_rows(ctx.get(), 0, n_kept.data(), ids.data()) == 0);
    CHECK(llama_decode(ctx.get(), llama_batch_get_one(tokens.data(), 3)) == 0);
    res.push_back(logits(ctx.get()));
    return res;
}

// as test-snapkv-exact, on the device that ignores strides, and its decode as on the CPU
static void test_masks(const char * path) {
    set_variable(LLAMA_SNAPKV_UNPROVEN, "1");
    const auto model = load(path, 99);
    const auto on_host = load(path, 0);
    auto tokens = make_tokens(model.get(), N, 1);
    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0 }) {
        if (type == GGML_TYPE_Q8_0 && !llama_snapkv_supported(model.get(), context_params(type, true), snapkv_params())) {
            CHECK(strstr(llama_snapkv_last_error(), "KV cache type") || strstr(llama_snapkv_last_error(), "cannot make"));
            continue; // heads that are no whole blocks
        }
        llama_context_ptr plain(llama_init_from_model(model.get(), context_params(type, true)));
        CHECK(plain && llama_decode(plain.get(), llama_batch_get_one(tokens.data(), N)) == 0);
        const auto expected = logits(plain.get());
        const auto expected_on_host = run(on_host.get(), type, false, 1);
        for (const uint32_t group : { 1u, 2u, UINT32_MAX }) {
            imaginary::n_attention = imaginary::n_strided = 0;
            const auto found = run(model.get(), type, true, group);
            CHECK(imaginary::n_attention > 0);
            CHECK(imaginary::n_strided == 0);
            CHECK(found[0] == expected);
            CHECK(found == expected_on_host);
        }
    }
    set_variable(LLAMA_SNAPKV_UNPROVEN, nullptr);
}

// a row's ADD and RMS_NORM are neighbours in the last layer, and must not be parted by what a prefill adds to the graph
static void test_reordering(const char * path) {
    set_variable(LLAMA_SNAPKV_UNPROVEN, "1");
    imaginary::reorders = true;
    const auto model = load(path, 99);
    auto tokens = make_tokens(model.get(), N, 1);
    const auto cp = context_params(GGML_TYPE_F16, true);
    llama_context_ptr plain(llama_init_from_model(model.get(), cp));
    imaginary::n_joined = 0;
    CHECK(plain && llama_decode(plain.get(), llama_batch_get_one(tokens.data(), N)) == 0);
    const auto expected = logits(plain.get());
    CHECK(imaginary::n_joined > 0 || arch_of(model.get()) != "llama");
    for (const uint32_t group : { 1u, 2u, UINT32_MAX }) {
        llama_snapkv_params sp = snapkv_params();
        sp.layer_group = group;
        llama_context_ptr ctx(llama_snapkv_init_from_model(model.get(), cp, sp));
        CHECK(ctx && prefill(ctx.get(), tokens) == 0);
        CHECK(logits(ctx.get()) == expected);
    }
    imaginary::reorders = false;
    set_variable(LLAMA_SNAPKV_UNPROVEN, nullptr);
}

// each layer is computed where it is: by halves, and with most of them on the second device
static void test_two_devices(const char * path) {
    set_variable(LLAMA_SNAPKV_UNPROVEN, "1");
    for (const auto & split : { std::vector<float>{ 1, 1 }, { 1, 3 } }) {
        const auto model = load(path, 99, split.data());
        auto tokens = make_tokens(model.get(), N, 1);
        const auto cp = context_params(GGML_TYPE_F16, true);
        llama_context_ptr plain(llama_init_from_model(model.get(), cp));
        CHECK(plain && llama_decode(plain.get(), llama_batch_get_one(tokens.data(), N)) == 0);
        const auto expected = logits(plain.get());
        for (const uint32_t group : { 1u, 2u, UINT32_MAX }) {
            imaginary::n_far = imaginary::n_attention_on[0] = imaginary::n_attention_on[1] = 0;
            CHECK(run(model.get(), GGML_TYPE_F16, true, group)[0] == expected);
            CHECK(imaginary::n_far == 0 || arch_of(model.get()) == "gemma4"); // whose last layers read the KV of one on the first device
            const bool both = model->dev_layer(0) != model->dev_layer((int) llama_model_n_layer(model.get()) - 1);
            CHECK(both || split[0] == split[1]); // two layers and the output: the first two
            const bool attends_at_both_ends = !llama_model_is_hybrid(model.get());
            CHECK(!attends_at_both_ends || (imaginary::n_attention_on[0] > 0 && (imaginary::n_attention_on[1] > 0 || !both)));
        }
    }
    set_variable(LLAMA_SNAPKV_UNPROVEN, nullptr);
}

// chunks so long that a sliding window's cells get more from one to the next: in the first group of some models no layer reads its mask
static void test_neighbours(const char * path) {
    set_variable(LLAMA_SNAPKV_UNPROVEN, "1");
    imaginary::like_cuda = true;
    const auto model = load(path, 99);
    auto tokens = make_tokens(model.get(), 640, 1);
    auto cp = context_params(GGML_TYPE_F16, true);
    cp.n_ubatch = 240;
    cp.n_batch = (uint32_t) tokens.size();
    llama_context_ptr plain(llama_init_from_model(model.get(), cp));
    CHECK(plain && llama_decode(plain.get(), llama_batch_get_one(tokens.data(), (int32_t) tokens.size())) == 0);
    const auto expected = logits(plain.get());
    for (const uint32_t group : { 1u, 2u, UINT32_MAX }) {
        imaginary::n_joined = 0;
        llama_snapkv_params sp = snapkv_params();
        sp.layer_group = group;
        llama_context_ptr ctx(llama_snapkv_init_from_model(model.get(), cp, sp));
        CHECK(ctx && prefill(ctx.get(), tokens) == 0);
        CHECK(logits(ctx.get()) == expected);
        CHECK(imaginary::n_joined > 0 || arch_of(model.get()) != "gemma4");
    }
    imaginary::like_cuda = false;
    set_variable(LLAMA_SNAPKV_UNPROVEN, nullptr);
}

// bytes on the device by which a prefill of N tokens is planned, without those that stay free
static size_t planned(llama_context & ctx, const llama_snapkv_params & sp) {
    const auto mem = llama_snapkv_memory_of(ctx);
    llama_snapkv_groups groups(ctx.get_model(), *mem.base);
    const auto place = llama_snapkv_make_place(ctx, mem, groups, true);
    return llama_snapkv_make_plans(ctx, mem, sp, groups, place, N)[0].bytes - LLAMA_SNAPKV_MARGIN;
}

// what "auto" takes beside a GPU: one layer at a time or all of them, whichever is smaller; the hidden state on the device, and on
// the host where memory is short
static void test_plans(const char * path) {
    set_variable(LLAMA_SNAPKV_UNPROVEN, "1");
    const auto model = load(path, 99);
    auto prefill_by = [&](uint32_t group) {
        llama_snapkv_params sp = snapkv_params();
        sp.layer_group = group;
        llama_context_ptr ctx(llama_snapkv_init_from_model(model.get(), context_params(GGML_TYPE_F16, true), sp));
        const auto tokens = make_tokens(model.get(), N, 1);
        CHECK(ctx && prefill(ctx.get(), tokens) == 0);
        llama_snapkv_stats stats = {};
        stats.size = sizeof(stats);
        CHECK(llama_snapkv_get_stats(ctx.get(), &stats));
        const size_t taken = stats.bytes_kv_group + stats.bytes_hidden - stats.bytes_hidden_host + stats.bytes_mask + stats.bytes_compute;
        CHECK(imaginary::memory == 1 || taken <= planned(*ctx, sp));
        return std::make_pair(stats, llama_snapkv_n_layer(ctx.get()));
    };
    const auto [single, n_layer] = prefill_by(1);
    const auto found = prefill_by(0).first;
    const auto whole = prefill_by(UINT32_MAX).first;
    const bool all_are_smaller = whole.bytes_kv_group + whole.bytes_hidden < single.bytes_kv_group + single.bytes_hidden;
    CHECK(found.layer_group == (all_are_smaller ? n_layer : 1));
    CHECK(found.bytes_hidden_host == 0 && found.n_ubatch == 50);
    CHECK(prefill_by(2).first.layer_group == std::min(2u, n_layer));

    const size_t memory = imaginary::memory;
    imaginary::memory = 1;
    const auto little = prefill_by(0).first;
    CHECK(little.layer_group == 1 && (little.bytes_hidden_host > 0) == (n_layer > 1));
    imaginary::memory = memory;
    set_variable(LLAMA_SNAPKV_UNPROVEN, nullptr);
}

int main(int argc, char ** argv) {
    ggml_backend_load_all();
    if (argc < 2) {
        test_table();
    }
    ggml_backend_register(imaginary::reg());
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    if (argc < 2) {
        test_fused_ops();
        test_proofs();
    }
    for (int i = 1; i < argc; ++i) {
        current = argv[i];
        test_refusal(argv[i]);
        test_what_is_not_exact_is_refused(argv[i]);
        test_check(argv[i]);
        test_masks(argv[i]);
        test_neighbours(argv[i]);
        test_reordering(argv[i]);
        test_two_devices(argv[i]);
        test_plans(argv[i]);
    }
    printf("%s\n", n_failed ? "FAILED" : "OK");
    return n_failed ? 1 : 0;
}
