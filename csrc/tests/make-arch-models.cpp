// Writes one tiny GGUF with random weights for each architecture that upstream's own test can build:
//   make-arch-models -s SEED -o FOLDER/
// The program is upstream's; this adds the loading of the CPU backend, which our builds keep in libraries of their own, layers to
// hybrid models, of which upstream's have one with attention: too few for two layer groups, and Gemma 4 and 3n, which it leaves out.

#define main llama_archs_main
#include "tests/test-llama-archs.cpp" // of the staged tree
#undef main

#include "llama-model.h"

#include <algorithm>

// odd, so that a recurrent layer follows the last one with attention, or the other way round
static constexpr uint32_t N_LAYER = 7;

static constexpr llm_arch HYBRIDS[] = {
    LLM_ARCH_JAMBA,
    LLM_ARCH_FALCON_H1,
    LLM_ARCH_PLAMO2,
    LLM_ARCH_GRANITE_HYBRID,
    LLM_ARCH_LFM2,
    LLM_ARCH_LFM2MOE,
    LLM_ARCH_NEMOTRON_H,
    LLM_ARCH_NEMOTRON_H_MOE,
    LLM_ARCH_QWEN3NEXT,
    LLM_ARCH_QWEN35,
    LLM_ARCH_QWEN35MOE,
    LLM_ARCH_MINIMAX_01,
    LLM_ARCH_BAILINGMOE3,
    LLM_ARCH_KIMI_LINEAR,
    LLM_ARCH_KIMI_K3,
};

// upstream's model with its layers repeated
static gguf_context_ptr with_layers(llm_arch arch, bool moe) {
    gguf_context_ptr res = get_gguf_ctx(arch, moe);
    llama_model_saver saver(arch, res.get());
    // with a window LFM2 has no layer with full attention
    gguf_remove_key(res.get(), saver.llm_kv(LLM_KV_ATTENTION_SLIDING_WINDOW).c_str());
    saver.add_kv(LLM_KV_BLOCK_COUNT, N_LAYER);
    for (const llm_kv key : { LLM_KV_ATTENTION_HEAD_COUNT, LLM_KV_ATTENTION_HEAD_COUNT_KV, LLM_KV_FEED_FORWARD_LENGTH }) {
        const int64_t id = gguf_find_key(res.get(), saver.llm_kv(key).c_str());
        if (gguf_get_kv_type(res.get(), id) != GGUF_TYPE_ARRAY) {
            continue; // the same for all layers
        }
        const auto * values = (const uint32_t *) gguf_get_arr_data(res.get(), id);
        const size_t n = gguf_get_arr_n(res.get(), id);
        std::vector<uint32_t> repeated(N_LAYER);
        for (size_t il = 0; il < repeated.size(); ++il) {
            repeated[il] = values[il % n];
        }
        saver.add_kv(key, repeated);
    }
    if (arch == LLM_ARCH_BAILINGMOE3) {
        gguf_remove_key(res.get(), saver.llm_kv(LLM_KV_KDA_SAFE_GATE).c_str()); // as upstream does
        saver.add_kv(LLM_KV_SWIGLU_CLAMP_EXP, std::vector<float>(N_LAYER, 4.0f));
        saver.add_kv(LLM_KV_SWIGLU_CLAMP_SHEXP, std::vector<float>(N_LAYER, 5.0f));
    }
    return res;
}

// DeepSeek 2 with more query heads than upstream's one. absorbed: all of them read one row of the cache; else, as in the files of before
// llama.cpp could do that, each has K and V of its own
static gguf_context_ptr make_deepseek2(bool absorbed) {
    gguf_context_ptr res = get_gguf_ctx(LLM_ARCH_DEEPSEEK2, true);
    llama_model_saver saver(LLM_ARCH_DEEPSEEK2, res.get());
    const uint32_t n_head = absorbed ? 20 : 4;
    saver.add_kv(LLM_KV_BLOCK_COUNT, uint32_t(3));
    saver.add_kv(LLM_KV_ATTENTION_HEAD_COUNT, n_head);
    saver.add_kv(LLM_KV_ATTENTION_HEAD_COUNT_KV, absorbed ? 1 : n_head);
    if (!absorbed) {
        for (const auto & [key, key_mla] : { std::pair(LLM_KV_ATTENTION_KEY_LENGTH, LLM_KV_ATTENTION_KEY_LENGTH_MLA), std::pair(LLM_KV_ATTENTION_VALUE_LENGTH, LLM_KV_ATTENTION_VALUE_LENGTH_MLA) }) {
            const int64_t id = gguf_find_key(res.get(), saver.llm_kv(key_mla).c_str());
            saver.add_kv(key, gguf_get_val_u32(res.get(), id));
            gguf_remove_key(res.get(), saver.llm_kv(key_mla).c_str());
        }
    }
    return res;
}

// what upstream's saver knows all of
static void save_known(gguf_context * gguf, size_t seed, const std::string & path) {
    const auto [model, ctx] = get_model_and_ctx(gguf, nullptr, seed, 0.1f, {});
    llama_model_save_to_file(model.get(), path.c_str());
}

// Gemma 4 as its kinds are: windows and full attention in turn, with heads of different sizes and numbers
struct gemma4 {
    const char * name;
    bool moe;
    uint32_t n_layer;
    uint32_t n_shared;         // last layers, which read the KV of the last two before them
    uint32_t n_embd_per_layer; // 0: no embeddings of their own for layers
    uint32_t head_dim;         // of layers with full attention
    uint32_t n_head_kv;        // of layers with full attention; those with a window have twice as many
};

static constexpr gemma4 GEMMA4[] = {
    { "gemma4-dense", false, 6, 0, 0, 512, 1 }, // as 31B
    { "gemma4-moe", true, 6, 0, 0, 512, 2 }, // as 26B-A4B
    { "gemma4-shared-dense", false, 10, 4, 32, 256, 2 }, // as E2B and E4B
};

static gguf_context_ptr make_gemma4(const gemma4 & kind) {
    gguf_context_ptr res = get_gguf_ctx(LLM_ARCH_GEMMA4, kind.moe);
    llama_model_saver saver(LLM_ARCH_GEMMA4, res.get());
    std::vector<uint32_t> windows;
    std::vector<uint32_t> n_head_kv;
    for (uint32_t il = 0; il < kind.n_layer; ++il) {
        windows.push_back(il % 2 == 0);
        n_head_kv.push_back(kind.n_head_kv * (il % 2 == 0 ? 2 : 1));
    }
    saver.add_kv(LLM_KV_BLOCK_COUNT, kind.n_layer);
    saver.add_kv(LLM_KV_ATTENTION_SHARED_KV_LAYERS, kind.n_shared);
    saver.add_kv(LLM_KV_EMBEDDING_LENGTH_PER_LAYER, kind.n_embd_per_layer);
    saver.add_kv(LLM_KV_ATTENTION_HEAD_COUNT, uint32_t(4));
    saver.add_kv(LLM_KV_ATTENTION_HEAD_COUNT_KV, n_head_kv);
    saver.add_kv(LLM_KV_ATTENTION_SLIDING_WINDOW_PATTERN, windows);
    for (const llm_kv key : { LLM_KV_ATTENTION_KEY_LENGTH, LLM_KV_ATTENTION_VALUE_LENGTH, LLM_KV_ROPE_DIMENSION_COUNT }) {
        saver.add_kv(key, kind.head_dim);
    }
    for (const llm_kv key : { LLM_KV_ATTENTION_KEY_LENGTH_SWA, LLM_KV_ATTENTION_VALUE_LENGTH_SWA, LLM_KV_ROPE_DIMENSION_COUNT_SWA }) {
        saver.add_kv(key, uint32_t(64));
    }
    return res;
}

// the layers of E2B: of 30 the first 20 have KV, and every fifth has full attention
static gguf_context_ptr make_gemma3n() {
    gguf_context_ptr res = get_gguf_ctx(LLM_ARCH_GEMMA3N, false);
    llama_model_saver saver(LLM_ARCH_GEMMA3N, res.get());
    saver.add_kv(LLM_KV_BLOCK_COUNT, uint32_t(30));
    saver.add_kv(LLM_KV_ATTENTION_SLIDING_WINDOW_PATTERN, uint32_t(5));
    saver.add_kv(LLM_KV_ATTENTION_HEAD_COUNT, uint32_t(4));
    saver.add_kv(LLM_KV_ATTENTION_HEAD_COUNT_KV, uint32_t(2));
    for (const llm_kv key : { LLM_KV_ATTENTION_KEY_LENGTH, LLM_KV_ATTENTION_VALUE_LENGTH, LLM_KV_ROPE_DIMENSION_COUNT }) {
        saver.add_kv(key, uint32_t(64));
    }
    return res;
}

// upstream's saver does not know all keys and tensors of these. k_is_v: layers with full attention have no weights for V
static void save(gguf_context * gguf, bool k_is_v, size_t seed, const std::string & path) {
    const auto [model, ctx] = get_model_and_ctx(gguf, nullptr, seed, 0.1f, {});
    gguf_context_ptr out(gguf_init_empty());
    gguf_set_kv(out.get(), gguf);
    for (const auto & [name, tensor] : model->tensors_by_name) {
        int il = -1;
        char part[8] = "";
        sscanf(name.c_str(), "blk.%d.%6s", &il, part);
        if (gguf_find_tensor(out.get(), name.c_str()) >= 0 || (k_is_v && strcmp(part, "attn_v") == 0 && !model->hparams.is_swa(il))) {
            continue;
        }
        if (name.find("attn_q_norm") != std::string::npos) { // or all keys would get about the same attention
            std::vector<float> values(ggml_nelements(tensor));
            ggml_backend_tensor_get(tensor, values.data(), 0, ggml_nbytes(tensor));
            std::transform(values.begin(), values.end(), values.begin(), [](float x) { return 20.0f * x; });
            ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
        }
        gguf_add_tensor(out.get(), tensor);
    }
    GGML_ASSERT(gguf_write_to_file(out.get(), path.c_str(), false));
}

// what upstream's test runs and does not save
static constexpr llm_arch OTHERS[] = { LLM_ARCH_APERTUS, LLM_ARCH_BITNET, LLM_ARCH_STEP35 };

int main(int argc, char ** argv) {
    ggml_backend_load_all();
    const int rc = llama_archs_main(argc, argv);
    if (rc != 0 || argc != 5 || strcmp(argv[1], "-s") != 0 || strcmp(argv[3], "-o") != 0) {
        return rc;
    }
    const size_t seed = std::stoull(argv[2]);
    const std::string folder = std::string(argv[4]) + "/";
    for (const gemma4 & kind : GEMMA4) {
        save(make_gemma4(kind).get(), kind.n_shared == 0, seed, folder + kind.name + ".gguf");
    }
    save(make_gemma3n().get(), false, seed, folder + "gemma3n-dense.gguf");
    for (const llm_arch arch : OTHERS) {
        const bool moe = moe_mandatory(arch);
        gguf_context_ptr gguf = get_gguf_ctx(arch, moe);
        if (arch != LLM_ARCH_STEP35) { // the others do not read it
            llama_model_saver(arch, gguf.get()).add_kv(LLM_KV_ATTENTION_SLIDING_WINDOW, uint32_t(0));
        }
        save(gguf.get(), false, seed, folder + llm_arch_name(arch) + (moe ? "-moe.gguf" : "-dense.gguf"));
    }
    save_known(make_deepseek2(true).get(), seed, folder + "deepseek2-heads-moe.gguf");
    save_known(make_deepseek2(false).get(), seed, folder + "deepseek2-unabsorbed-moe.gguf");
    for (const llm_arch arch : HYBRIDS) {
        for (const bool moe : { false, true }) {
            if (moe ? moe_implemented(arch) : !moe_mandatory(arch)) {
                save_known(with_layers(arch, moe).get(), seed, folder + llm_arch_name(arch) + (moe ? "-moe.gguf" : "-dense.gguf"));
            }
        }
    }
    return 0;
}
