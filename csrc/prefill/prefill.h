// Layer-group prefill: the prompt goes through G cached layers at a time, and these are scored and evicted before the
// next ones start. The last token's logits equal those of llama_decode() with equal chunks.
#pragma once

#include "state/context.h"
#include "state/task.h"

// return code as llama_snapkv_prefill()
int32_t llama_snapkv_prefill_groups(llama_context & ctx, llama_snapkv & sk, const llama_snapkv_task & task);
