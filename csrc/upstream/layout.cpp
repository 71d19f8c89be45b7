#include "upstream/layout.h"

#include "llama-impl.h"
#include "llama-model.h"

// of Gemma 3n and 4: layers from the first one without KV on read the last layer of their kind before it, as create_memory() has it
static std::string check_sharing(const llama_hparams & hparams) {
    const int32_t n_own = hparams.n_layer_kv_from_start;
    if (n_own < 2) {
        return format("%d layers have KV of their own, and others read that of two: the first two have to have it", n_own);
    }
    for (int32_t il = n_own; il < (int32_t) hparams.n_layer(); ++il) {
        const bool is_swa = hparams.is_swa(il);
        const int32_t owner = n_own - (is_swa ? 2 : 1);
        if (hparams.is_swa(owner) != is_swa) {
            return format("layer %d has %s and reads the KV of layer %d, which has not", il, is_swa ? "a sliding window" : "full attention", owner);
        }
        if (hparams.n_head_kv(il) != hparams.n_head_kv(owner)) {
            return format("layer %d has %u KV heads and reads the KV of layer %d, which has %u", il, hparams.n_head_kv(il), owner, hparams.n_head_kv(owner));
        }
    }
    return "";
}

std::string llama_snapkv_check_layout(const llama_model & model) {
    const auto & hparams = model.hparams;
    if (hparams.vocab_only) {
        return "";
    }
    for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
        const uint32_t n_head_kv = hparams.n_head_kv(il);
        if (n_head_kv > 0 && hparams.n_head(il) % n_head_kv != 0) {
            return format("layer %u has %u query heads for %u KV heads, which is no multiple", il, hparams.n_head(il), n_head_kv);
        }
        if (n_head_kv > 0 && !hparams.is_recr(il) && llama_model_rope_type(&model) != LLAMA_ROPE_TYPE_NONE && hparams.n_rot(il) > hparams.n_embd_head_k(il)) {
            return format("layer %u rotates %u elements of heads that have %u", il, hparams.n_rot(il), hparams.n_embd_head_k(il));
        }
    }
    if (hparams.swa_type != LLAMA_SWA_TYPE_NONE && !hparams.is_swa_any()) {
        return "the model has a sliding window, and none of its layers has it";
    }
    const bool shares = model.arch == LLM_ARCH_GEMMA3N || model.arch == LLM_ARCH_GEMMA4;
    return shares ? check_sharing(hparams) : "";
}
