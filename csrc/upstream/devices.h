// The register of ggml's backends: what is known of each, and who is refused. Its table is in upstream/devices.cpp; llama_snapkv_get_backend()
// shows it to the outside.
#pragma once

#include "ggml-backend.h"

#include "llama.h"

#include <cstdint>
#include <string>
#include <vector>

// environment variable: 1 lets a model run on devices that nobody has proven, if a small model is exact there (proof/check.h); 2 if it
// is not
static constexpr const char * LLAMA_SNAPKV_UNPROVEN = "SNAPKV_UNPROVEN";

struct llama_snapkv_backend {
    const char * name;  // ggml_backend_reg_name()
    const char * title; // what people call it
    bool proven; // on hardware, the logits after a prefill by layer groups were those of llama_decode(), difference 0
    bool checked; // not proven, but so on one device: on each other one a small model is computed when a model is loaded (proof/check.h), and has to be exact
    bool proven_recurrent; // and so were the states of recurrent layers, for models that have them
    bool proven_latent; // and those logits of models with latent attention (MLA)
    bool proven_wide; // and with heads of more than 256 elements, whose votes the device's own kernels count
    bool proven_sharing; // and with layers that read the KV of another
    bool proven_selective; // and selective prefills did there what is tested of them (test-snapkv-selective)
    bool proven_recall; // and recalls while answering did there what is tested of them (test-snapkv-recall, test-snapkv-recall-bounds)
    bool reads_mask_stride; // flash attention obeys the row stride of its mask; others take its rows as adjacent
    bool fused; // has our fused ops; others run ggml's
    bool overlaps; // several of its devices compute chunks of one prompt at the same time: copies between them wait for events
    const char * evidence; // what was run where and when, or why nobody can rely on it, as a sentence
};

// the register's line i; null past its end
const llama_snapkv_backend * llama_snapkv_backend_at(uint32_t i);

// of a backend's name; one that is in no line has the name "", is not proven and reads no stride
llama_snapkv_backend llama_snapkv_backend_of(const std::string & name);
llama_snapkv_backend llama_snapkv_backend_of(ggml_backend_dev_t dev);

// may a node that is computed by one of these devices get a mask whose rows are apart?
bool llama_snapkv_reads_mask_stride(const std::vector<ggml_backend_dev_t> & devs);
bool llama_snapkv_reads_mask_stride(); // any device of this process

// of a device that computes something of a model and is not proven for it
struct llama_snapkv_unproven_device {
    ggml_backend_dev_t dev;
    std::string what;   // "nobody has proven that ...", with its name
    std::string models; // models of its kind only, as in "models with recurrent layers"; "": all
    bool cuda_is_proven; // a build for CUDA would do
    bool checked; // the check decides, without LLAMA_SNAPKV_UNPROVEN
};

std::vector<llama_snapkv_unproven_device> llama_snapkv_unproven_devices(const llama_model & model, const llama_context_params & cparams);

// what LLAMA_SNAPKV_UNPROVEN allows: 0, 1 or 2
int32_t llama_snapkv_tries_unproven();

// "" if all devices that compute the model in such a context are proven, or are checked, or LLAMA_SNAPKV_UNPROVEN is set
std::string llama_snapkv_check_devices(const llama_model & model, const llama_context_params & cparams);

// while one lives, this thread takes devices as proven: a proof runs
struct llama_snapkv_proving {
    llama_snapkv_proving();
    ~llama_snapkv_proving();
    llama_snapkv_proving(const llama_snapkv_proving &) = delete;
    static bool is_on();
};
