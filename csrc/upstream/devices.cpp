#include "upstream/devices.h"

#include "snapkv.h"

#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>

// test-snapkv-exact has to give a difference of 0 on the hardware before a backend is called proven, and for recurrent layers one
// of 0 in their states.
// the stride: from the sources of the pinned llama.cpp; where nobody has looked or run it, it is taken as not read. ROCm and MUSA are the
// CUDA backend, compiled otherwise. overlaps: one device waits for another's event, which with two H200 through Vulkan never came
// clang-format off
static constexpr llama_snapkv_backend BACKENDS[] = {
    //                                  proven checked: recurrent latent wide sharing selective recall stride fused overlaps
    { "CPU",     "CPU",                 true, false,   true,     true,  true, true, true,     true, true,  true, false,
      "Linux on x86-64: with each change the test programs run there, among them test-snapkv-exact on all architectures and "
      "test-snapkv-ops against float64." },
    { "CUDA",    "CUDA (NVIDIA)",       true, false,   true,     true,  true, true, true,     true, true,  true, true,
      "Compute capability 9.0, an H100 on 2026-11-25 and an H200 on 2026-11-29 and 30: test-snapkv-exact on all architectures, with K and "
      "V in f16 and q8_0 (Llama 4 with chunks of 49 tokens: logits differ by 6e-5, and nobody has found out why), test-snapkv-ops, test-snapkv-selective, test-snapkv-recall but for latent attention, test-snapkv-hybrid with equal chunks, "
      "kept positions against the CPU (results/gpu-*.json)." },
    { "BLAS",    "BLAS (Accelerate, OpenBLAS, MKL)", true, false, true, true, true, true, true,     true, true,  false, false,
      "It computes products of matrices for the CPU, never attention: the same ones in a prefill as in llama_decode(). "
      "Taken as proven for that; not run." },
    { "ZenDNN",  "ZenDNN (AMD)",        true, false,   true,     true,  true, true, true,     true, true,  false, false,
      "As BLAS: not run." },
    { "zDNN",    "zDNN (IBM Z)",        true, false,   true,     true,  true, true, true,     true, true,  false, false,
      "As BLAS: not run." },
    { "MTL",     "Metal (Apple)",       false, false,  false,    false, false, false, false,    false, true,  true, false,
      "Never run on Apple hardware. The kernels, and what starts them, run as C++ on a CPU (test-snapkv-metal)." },
    { "Vulkan",  "Vulkan",              false, true,  false,    false, false, false, false,    false, false, false, false,
      "Run on NVIDIA H200s on 2026-11-30, with shaders that use no matrix cores: test-snapkv-ops, and test-snapkv-exact on shapes of Llama "
      "3.2 1B and Gemma 3 4B with a cache in f16 and q8_0, on one device and on two (the Llama on one GPU that was listed twice). Other "
      "vendors' drivers compute otherwise, so on each device a small model is computed when a model is loaded, and has to be exact there. "
      "Its flash attention takes a mask's rows as adjacent: each chunk gets a copy of its part." },
    { "ROCm",    "ROCm (AMD)",          false, false,  false,    false, false, false, false,    false, true,  true, false,
      "Never run on AMD's hardware. Our sources compile with HIP 5.2, and the kernels run as C++ on a CPU, with waves of 32 and of 64 lanes "
      "(test-snapkv-hip)." },
    { "MUSA",    "MUSA (Moore Threads)", false, false, false,    false, false, false, false,    false, true,  false, false, "Never run." },
    { "SYCL",    "SYCL (Intel)",        false, false,  false,    false, false, false, false,    false, false, false, false, "Never run." },
    { "OpenCL",  "OpenCL",              false, false,  false,    false, false, false, false,    false, false, false, false, "Never run." },
    { "CANN",    "CANN (Ascend)",       false, false,  false,    false, false, false, false,    false, false, false, false, "Never run." },
    { "HTP",     "Hexagon (Qualcomm)",  false, false,  false,    false, false, false, false,    false, false, false, false, "Never run." },
    { "WebGPU",  "WebGPU",              false, false,  false,    false, false, false, false,    false, false, false, false,
      "Never run. Its flash attention takes a mask's rows as adjacent." },
    { "OPENVINO", "OpenVINO (Intel)",   false, false,  false,    false, false, false, false,    false, false, false, false, "Never run." },
    { "RPC",     "RPC",                 false, false,  false,    false, false, false, false,    false, false, false, false,
      "With a server of the pinned llama.cpp on the same machine, which computed on its CPU, all supported architectures were exact "
      "(tests/native/test_rpc.py). A server does not say what computes there." },
};
// clang-format on

const llama_snapkv_backend * llama_snapkv_backend_at(uint32_t i) {
    return i < std::size(BACKENDS) ? &BACKENDS[i] : nullptr;
}

llama_snapkv_backend llama_snapkv_backend_of(const std::string & name) {
    const std::string kind = name.substr(0, name.find('[')); // RPC's has the address after it
    for (const auto & backend : BACKENDS) {
        if (kind == backend.name) {
            return backend;
        }
    }
    return { "", "", false, false, false, false, false, false, false, false, false, false, false, "It is in no line of the register." };
}

llama_snapkv_backend llama_snapkv_backend_of(ggml_backend_dev_t dev) {
    return llama_snapkv_backend_of(std::string(ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev))));
}

bool llama_snapkv_get_backend(uint32_t i, llama_snapkv_backend_info * info) {
    const llama_snapkv_backend * line = llama_snapkv_backend_at(i);
    if (!line || info->size != sizeof(*info)) {
        return false;
    }
    *info = { sizeof(*info), line->name, line->title, line->evidence, line->proven, line->checked, line->proven_recurrent, line->proven_latent, line->proven_wide, line->proven_sharing, line->proven_selective, line->proven_recall, line->fused, !line->reads_mask_stride };
    return true;
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

// null where a backend is proven for the model, else for which models it is not; "": for all
static const char * unproven_for(const llama_model & model, const llama_snapkv_backend & backend) {
    if (!backend.proven && !backend.checked) {
        return "";
    }
    if (llama_model_is_hybrid(&model) && !backend.proven_recurrent) {
        return "models with recurrent layers";
    }
    const auto & hparams = model.hparams;
    if (hparams.is_mla()) {
        return backend.proven_latent ? nullptr : "models with latent attention (MLA)";
    }
    if (hparams.n_embd_head_k_full > 256 && !backend.proven_wide) {
        return "models with heads of more than 256 elements";
    }
    const bool shares = hparams.n_layer_kv_from_start >= 0 && hparams.n_layer_kv_from_start < (int32_t) hparams.n_layer();
    return shares && !backend.proven_sharing ? "models whose layers share KV" : nullptr;
}

std::vector<llama_snapkv_unproven_device> llama_snapkv_unproven_devices(const llama_model & model, const llama_context_params & cparams) {
    std::vector<llama_snapkv_unproven_device> res;
    if (llama_snapkv_proving::is_on()) {
        return res;
    }
    const bool cuda_is_proven = !unproven_for(model, llama_snapkv_backend_of(std::string("CUDA")));
    for (ggml_backend_dev_t dev : used_devices(model, cparams)) {
        const auto backend = llama_snapkv_backend_of(dev);
        const char * models = unproven_for(model, backend);
        if (!models && backend.proven) {
            continue;
        }
        const bool checked = !models; // and models = "": nothing is proven of this device
        models = models ? models : "";
        const std::string what = format("nobody has proven that results are right on %s (%s, ggml's backend %s%s)%s%s",
                ggml_backend_dev_name(dev), ggml_backend_dev_description(dev), ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev)),
                backend.name[0] ? "" : ", which is in no line of the register", models[0] ? " for " : "", models);
        res.push_back({ dev, what, models, cuda_is_proven, checked });
    }
    return res;
}

int32_t llama_snapkv_tries_unproven() {
    const char * tries = getenv(LLAMA_SNAPKV_UNPROVEN);
    return tries && strcmp(tries, "2") == 0 ? 2 : tries && strcmp(tries, "1") == 0 ? 1
                                                                                   : 0;
}

std::string llama_snapkv_check_devices(const llama_model & model, const llama_context_params & cparams) {
    auto unproven = llama_snapkv_unproven_devices(model, cparams);
    unproven.erase(std::remove_if(unproven.begin(), unproven.end(), [](const auto & device) { return device.checked; }), unproven.end());
    if (unproven.empty() || llama_snapkv_tries_unproven()) {
        return "";
    }
    return format("%s: compute on the CPU (n_gpu_layers 0, op_offload false), %sor set the environment variable %s=1 to try it",
            unproven[0].what.c_str(), unproven[0].cuda_is_proven ? "take a build for CUDA, " : "", LLAMA_SNAPKV_UNPROVEN);
}

static thread_local int32_t n_proving = 0;

llama_snapkv_proving::llama_snapkv_proving() {
    n_proving++;
}

llama_snapkv_proving::~llama_snapkv_proving() {
    n_proving--;
}

bool llama_snapkv_proving::is_on() {
    return n_proving > 0;
}
