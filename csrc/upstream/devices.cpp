#include "upstream/devices.h"

#include "snapkv.h"

#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

// test-snapkv-exact has to give a difference of 0 on the hardware before a backend is called proven, and for recurrent layers one
// of 0 in their states.
// the stride: from the sources of the pinned llama.cpp. ROCm and MUSA are the CUDA backend, compiled otherwise.
// BLAS, ZenDNN and zDNN compute products of matrices only, in the place of the CPU backend: the same ones in a prefill by groups
// as in llama_decode(), and never attention
static constexpr llama_snapkv_backend BACKENDS[] = {
    { "CPU", true, true, true, true, true, true },
    { "CUDA", true, true, true, true, false, true },
    { "ROCm", false, false, false, false, false, true },
    { "MUSA", false, false, false, false, false, true },
    { "MTL", false, false, false, false, false, true }, // Metal
    { "BLAS", true, true, true, true, true, true },
    { "ZenDNN", true, true, true, true, true, true },
    { "zDNN", true, true, true, true, true, true },
};

llama_snapkv_backend llama_snapkv_backend_of(const std::string & name) {
    for (const auto & backend : BACKENDS) {
        if (name == backend.name) {
            return backend;
        }
    }
    return { "", false, false, false, false, false, false };
}

llama_snapkv_backend llama_snapkv_backend_of(ggml_backend_dev_t dev) {
    return llama_snapkv_backend_of(std::string(ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev))));
}

bool llama_snapkv_proven(const char * backend) {
    return backend && llama_snapkv_backend_of(std::string(backend)).proven;
}

bool llama_snapkv_reads_mask_stride(const std::vector<ggml_backend_dev_t> & devs) {
    return std::all_of(devs.begin(), devs.end(), [](ggml_backend_dev_t dev) { return llama_snapkv_backend_of(dev).reads_mask_stride; });
}

bool llama_snapkv_reads_mask_stride() {
    std::vector<ggml_backend_dev_t> devs;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        devs.push_back(ggml_backend_dev_get(i));
    }
    return llama_snapkv_reads_mask_stride(devs);
}

// devices that compute something of the model
static std::vector<ggml_backend_dev_t> used_devices(const llama_model & model, const llama_context_params & cparams) {
    std::vector<ggml_backend_dev_t> devs;
    auto add = [&](ggml_backend_dev_t dev) {
        if (std::find(devs.begin(), devs.end(), dev) == devs.end()) {
            devs.push_back(dev);
        }
    };
    for (uint32_t il = 0; il < model.hparams.n_layer(); ++il) {
        add(model.dev_layer((int) il));
    }
    add(model.dev_output());
    // products with weights in host memory go to the others, too, and what is between them
    for (const auto & dev : model.devices) {
        if (cparams.op_offload) {
            add(dev.dev);
        }
    }
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        if (ggml_backend_dev_type(ggml_backend_dev_get(i)) == GGML_BACKEND_DEVICE_TYPE_ACCEL) {
            add(ggml_backend_dev_get(i));
        }
    }
    return devs;
}

// null where a backend is proven for the model, else for which models it is not, as a sentence goes on
static const char * unproven_for(const llama_model & model, const llama_snapkv_backend & backend) {
    if (!backend.proven) {
        return "";
    }
    if (llama_model_is_hybrid(&model) && !backend.proven_recurrent) {
        return " for models with recurrent layers";
    }
    // the prefill of a synthetic one ended the process there
    if (model.arch == LLM_ARCH_COHERE2MOE && strcmp(backend.name, "CUDA") == 0) {
        return " for models of the architecture cohere2moe";
    }
    const auto & hparams = model.hparams;
    if (hparams.is_mla()) {
        return backend.proven_latent ? nullptr : " for models with latent attention (MLA)";
    }
    if (hparams.n_embd_head_k_full > 256 && !backend.proven_wide) {
        return " for models with heads of more than 256 elements";
    }
    const bool shares = hparams.n_layer_kv_from_start >= 0 && hparams.n_layer_kv_from_start < (int32_t) hparams.n_layer();
    return shares && !backend.proven_sharing ? " for models whose layers share KV" : nullptr;
}

std::string llama_snapkv_check_devices(const llama_model & model, const llama_context_params & cparams) {
    const bool cuda_is_proven = !unproven_for(model, llama_snapkv_backend_of(std::string("CUDA")));
    for (ggml_backend_dev_t dev : used_devices(model, cparams)) {
        const char * models = unproven_for(model, llama_snapkv_backend_of(dev));
        if (!models) {
            continue;
        }
        const char * backend = ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev));
        const std::string unproven = format("nobody has proven that results are right on %s (%s, ggml's backend %s)%s",
                ggml_backend_dev_name(dev), ggml_backend_dev_description(dev), backend, models);
        const char * tries = getenv(LLAMA_SNAPKV_UNPROVEN);
        if (!tries || strcmp(tries, "1") != 0) {
            return format("%s: compute on the CPU (n_gpu_layers 0, op_offload false), %sor set the environment variable %s=1 to try it",
                    unproven.c_str(), cuda_is_proven ? "take a build for CUDA, " : "", LLAMA_SNAPKV_UNPROVEN);
        }
        LLAMA_LOG_WARN("snapkv: %s; %s=1 tries it all the same: compare its answers with those of the CPU\n", unproven.c_str(), LLAMA_SNAPKV_UNPROVEN);
    }
    return "";
}
