// Guesses that are looked at, and taken back: for models with recurrent layers, whose states cannot be rewound.
#include "snapkv.h"

#include "state/context.h"
#include "state/lock.h"
#include "state/looks.h"
#include "state/recurrent.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-memory-hybrid.h"

// all null and llama_snapkv_last_error() set if the sequence can have none
static llama_snapkv_memory looked_at(llama_context * ctx, llama_seq_id seq_id) {
    if (!llama_snapkv_of(ctx) || llama_snapkv_refuses(*ctx, seq_id)) {
        return {};
    }
    const auto mem = llama_snapkv_memory_of(*ctx);
    if (!mem.recr || seq_id < 0 || seq_id >= (llama_seq_id) ctx->n_seq_max()) {
        llama_snapkv_set_error("the model has no recurrent layers, or the sequence id is out of range");
        return {};
    }
    ctx->synchronize();
    ctx->memory_update(false);
    return mem;
}

bool llama_snapkv_reserve_looks(llama_context * ctx) {
    const auto mem = looked_at(ctx, 0);
    if (!mem.recr) {
        return false;
    }
    llama_snapkv * sk = llama_snapkv_of(ctx);
    try {
        if (!sk->looks) {
            sk->looks = std::make_shared<llama_snapkv_looks>(*mem.recr, ctx->n_seq_max());
        }
    } catch (const std::exception &) {
        llama_snapkv_set_error("out of memory: the states of recurrent layers before guesses");
        return false;
    }
    return true;
}

bool llama_snapkv_begin_look(llama_context * ctx, llama_seq_id seq_id) {
    const auto mem = looked_at(ctx, seq_id);
    if (!mem.recr || (!llama_snapkv_of(ctx)->looks && !llama_snapkv_reserve_looks(ctx))) {
        return false;
    }
    const llama_pos end = mem.hybrid->seq_pos_max(seq_id) + 1;
    if (end == 0) {
        llama_snapkv_set_error(format("sequence %d has no tokens to guess from", seq_id));
        return false;
    }
    try {
        mem.base->snapkv.set_look(seq_id, -1);
        llama_snapkv_of(ctx)->looks->keep(*mem.recr, seq_id, llama_snapkv_state_row(*mem.recr, seq_id));
        mem.base->snapkv.set_look(seq_id, end);
    } catch (const std::exception &) {
        llama_snapkv_set_error("out of memory: the state of recurrent layers before guesses");
        return false;
    }
    return true;
}

llama_pos llama_snapkv_take_back(llama_context * ctx, llama_seq_id seq_id, llama_pos pos) {
    const auto mem = looked_at(ctx, seq_id);
    if (!mem.recr) {
        return -1;
    }
    const llama_pos look = mem.base->snapkv.look_of(seq_id);
    if (look < 0 || look > pos || look > mem.base->seq_pos_max(seq_id) + 1 || !mem.base->snapkv.allows_rm(*mem.base, seq_id, look, -1)) {
        llama_snapkv_error() = format("no state is put aside that sequence %d could go back to from position %d", seq_id, pos);
        return -1;
    }
    try {
        llama_snapkv_of(ctx)->looks->bring_back(*mem.recr, seq_id, llama_snapkv_new_state_row(*mem.recr, seq_id, look));
    } catch (const std::exception & e) {
        mem.hybrid->seq_rm(seq_id, -1, -1); // a part may be that of a later token
        llama_snapkv_set_error(e.what());
        return -2;
    }
    mem.base->seq_rm(seq_id, look, -1);
    return look;
}
