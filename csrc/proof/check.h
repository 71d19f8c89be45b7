// Is a prefill by layer groups exact on a device? Asked of a small model (proof/tiny-model.h), as test-snapkv-exact asks it of real ones.
#pragma once

#include "llama.h"

#include <string>

// of the devices that are not proven for a model and tried all the same: a small model with heads of its shape is computed there, once a
// process. "" and a warning, or why a context is refused
std::string llama_snapkv_check_unproven(const llama_model & model, const llama_context_params & cparams, std::string & warning);
