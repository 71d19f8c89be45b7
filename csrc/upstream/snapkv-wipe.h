// States of recurrent layers that begin. Included by the patched llama-context.cpp.
#pragma once

struct llama_context;

// llama_context::process_ubatch(), and the first chunk of a prefill, when cells were chosen: zeros for a state that begins. llama.cpp
// multiplies with 0 what the cell's former sequence has left there, and a NaN stays one
void llama_snapkv_wipe_states(llama_context & ctx);
