#include "state/logits.h"

#include "upstream/access.h"

#include <stdexcept>

using access = llama_snapkv_access;

float * llama_snapkv_reserve_logits(llama_context & ctx) {
    if (access::output_reserve(ctx, 1) < 1) {
        throw std::runtime_error("out of memory: the logits");
    }
    return access::logits(ctx).data;
}

void llama_snapkv_show_logits(llama_context & ctx) {
    access::output_swaps(ctx).clear();
    access::output_ids(ctx)[0] = 0;
    access::n_outputs(ctx) = 1;
}
