// What is known of ggml's backends. All there is to say of one is in the table of upstream/devices.cpp.
#pragma once

#include "ggml-backend.h"

#include "llama.h"

#include <string>
#include <vector>

// environment variable: 1 lets a model run on devices of backends that nobody has proven
static constexpr const char * LLAMA_SNAPKV_UNPROVEN = "SNAPKV_UNPROVEN";

struct llama_snapkv_backend {
    const char * name; // ggml_backend_reg_name()
    bool proven; // on hardware, the logits after a prefill by layer groups were those of llama_decode(), difference 0
    bool proven_recurrent; // and so were the states of recurrent layers, for models that have them
    bool proven_latent; // and those logits of models with latent attention (MLA)
    bool proven_wide; // and with heads of more than 256 elements, whose votes the device's own kernels count
    bool proven_sharing; // and with layers that read the KV of another
    bool reads_mask_stride; // flash attention obeys the row stride of its mask; others take its rows as adjacent
};

// of a backend's name; an unknown one is not proven and reads no stride
llama_snapkv_backend llama_snapkv_backend_of(const std::string & name);
llama_snapkv_backend llama_snapkv_backend_of(ggml_backend_dev_t dev);

// may a node that is computed by one of these devices get a mask whose rows are apart?
bool llama_snapkv_reads_mask_stride(const std::vector<ggml_backend_dev_t> & devs);
bool llama_snapkv_reads_mask_stride(); // any device of this process

// "" if all devices that compute the model in such a context are proven, or LLAMA_SNAPKV_UNPROVEN is set, which is logged
std::string llama_snapkv_check_devices(const llama_model & model, const llama_context_params & cparams);
