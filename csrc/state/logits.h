// The logits of a context's last token, written from outside of llama_decode().
#pragma once

#include "llama.h"

// memory of one row of logits. throws std::runtime_error
float * llama_snapkv_reserve_logits(llama_context & ctx);

// from now on that row is what the context's last token has
void llama_snapkv_show_logits(llama_context & ctx);
