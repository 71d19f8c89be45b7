// Writes one tiny GGUF with random weights for each architecture that upstream's own test can build:
//   make-arch-models -s SEED -o FOLDER/
// The program is upstream's; this adds the loading of the CPU backend, which our builds keep in libraries of their own, and
// layers to hybrid models, of which upstream's have one with attention: too few for two layer groups.

#define main llama_archs_main
#include "tests/test-llama-archs.cpp" // of the staged tree
#undef main

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
    return res;
}

int main(int argc, char ** argv) {
    ggml_backend_load_all();
    const int rc = llama_archs_main(argc, argv);
    if (rc != 0 || argc != 5 || strcmp(argv[1], "-s") != 0 || strcmp(argv[3], "-o") != 0) {
        return rc;
    }
    for (const llm_arch arch : HYBRIDS) {
        for (const bool moe : { false, true }) {
            if (moe ? moe_implemented(arch) : !moe_mandatory(arch)) {
                const auto gguf = with_layers(arch, moe);
                const auto [model, ctx] = get_model_and_ctx(gguf.get(), nullptr, std::stoull(argv[2]), 0.1f, {});
                llama_model_save_to_file(model.get(), (std::string(argv[4]) + "/" + llm_arch_name(arch) + (moe ? "-moe.gguf" : "-dense.gguf")).c_str());
            }
        }
    }
    return 0;
}
