// The hidden states that a model's own prediction heads guess from.
#include "snapkv.h"

#include "state/lock.h"

#include "llama-context.h"
#include "llama-ext.h"

void llama_snapkv_keep_hidden(llama_context * ctx, bool keep) {
    // in the midst of a prefill's computation nothing changes: llama_decode() is refused then
    const bool computes = !llama_snapkv_locked(*ctx, LLAMA_MAX_SEQ).empty();
    if (!computes && ctx->get_cparams().embeddings_nextn != keep) { // a line in the log
        llama_set_embeddings_nextn(ctx, keep, /*masked =*/keep);
    }
}

const float * llama_snapkv_hidden(llama_context * ctx, int32_t i) {
    return llama_get_embeddings_nextn_ith(ctx, i);
}
